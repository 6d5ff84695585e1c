"use strict";
(() => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = {
    responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtonsToRemove: ["lasso2d", "select2d"],
  };
  const DIMMED = 0.15;

  const colours = (print) => {
    if (print) return { ink: "#000000", line: "#bbbbbb", paper: "#ffffff", soft: "#ffffff" };
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    return { ink: read("--ink"), line: read("--line"), paper: read("--paper"), soft: read("--soft") };
  };

  // What depends on the reader's scheme; everything else of a figure comes from the program.
  const theme = (layout, print) => {
    const { ink, line, paper } = colours(print);
    const changes = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      "font.color": ink,
      "font.family": "system-ui, sans-serif",
      "hoverlabel.bgcolor": paper,
      "hoverlabel.font.color": ink,
      "hoverlabel.bordercolor": line,
      "modebar.bgcolor": "rgba(0,0,0,0)",
      "modebar.color": line,
      "modebar.activecolor": ink,
    };
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      changes[`${name}.gridcolor`] = line;
      changes[`${name}.linecolor`] = line;
    }
    return changes;
  };

  // The lowest colour of a heat map is the ground of the page, so that its numbers read in every scheme.
  const heats = (data) => data.flatMap((trace, at) => (trace.type === "heatmap" ? [at] : []));
  const heated = ({ colorscale }, print) => [[0, colours(print).soft], ...colorscale.slice(1)];
  // Copies: Plotly writes what it is told later into the traces that it was given.
  const grounded = (data) => data.map((trace) => (
    trace.type === "heatmap" ? { ...trace, colorscale: heated(trace, false) } : { ...trace }
  ));

  const merged = (layout, changes) => {
    const copy = JSON.parse(JSON.stringify(layout));
    for (const [path, value] of Object.entries(changes)) {
      const keys = path.split(".");
      const last = keys.pop();
      let node = copy;
      for (const key of keys) node = node[key] ??= {};
      node[last] = value;
    }
    return copy;
  };

  // --- one run, picked in a figure or by its button, stands out in all figures and tables ---

  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const buttons = [...document.querySelectorAll("button[data-run]")];
  const runs = new Map(buttons.map((button) => [escaped(button.dataset.run), button.dataset.run]));
  const hidden = new Set();
  const visible = new Set();
  let picked = null;
  let hovered = null;

  const shown = (node) => plots[node.dataset.figure][Number(node.dataset.view)];
  const drawings = () => [...document.querySelectorAll(".plot.js-plotly-plot")];

  const band = (layout, run) => {
    const common = { type: "rect", layer: "below", fillcolor: "rgba(128,128,128,0.22)", line: { width: 0 } };
    for (const [name, own, other] of [["yaxis", "y", "x"], ["xaxis", "x", "y"]]) {
      const at = (layout[name]?.categoryarray ?? []).indexOf(run);
      if (at >= 0) {
        return [{ ...common, [`${own}ref`]: own, [`${other}ref`]: "paper", [`${own}0`]: at - 0.5,
          [`${own}1`]: at + 0.5, [`${other}0`]: 0, [`${other}1`]: 1 }];
      }
    }
    return [];
  };

  const emphasise = (node, run) => {
    const { data, layout } = shown(node);
    const ours = data.flatMap((trace, at) => (trace.meta?.run ? [at] : []));
    const shapes = [...(layout.shapes ?? []), ...(run === null ? [] : band(layout, run))];
    if (!ours.length) {
      if (shapes.length !== (node.layout.shapes ?? []).length || shapes.length) Plotly.relayout(node, { shapes });
      return;
    }
    const dims = (trace) => run !== null && trace.meta.run !== run;
    const opacity = ours.map((at) => (dims(data[at]) ? DIMMED : data[at].opacity ?? 1));
    const visibility = ours.map((at) => (hidden.has(data[at].meta.run) ? "legendonly" : true));
    Plotly.update(node, { opacity, visible: visibility }, { shapes }, ours);
  };

  const mark = (run) => {
    for (const row of document.querySelectorAll("tbody tr")) {
      const name = row.querySelector("th")?.textContent;
      row.classList.toggle("on", run !== null && name === runs.get(run));
    }
  };

  const emphasiseAll = (run, except = null) => {
    for (const node of drawings()) {
      if (node !== except && (except === null || visible.has(node))) emphasise(node, run);
    }
  };

  const pickRun = (run) => {
    picked = run === picked ? null : run;
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(picked !== null && escaped(button.dataset.run) === picked));
    }
    for (const select of picked === null ? [] : document.querySelectorAll('select[data-picks="run"]')) {
      const option = [...select.options].find((each) => each.textContent === runs.get(picked));
      if (option && select.value !== option.value) {
        select.value = option.value;
        pick(select);
      }
    }
    emphasiseAll(picked);
    mark(picked);
    const fragment = picked === null ? "" : `#run=${encodeURIComponent(runs.get(picked))}`;
    history.replaceState(null, "", window.location.pathname + fragment);
  };

  const runOf = (point) => {
    const found = [point?.data?.meta?.run, point?.y, point?.x].find((name) => runs.has(name));
    return found ?? null;
  };

  let waiting = 0;
  const hover = (run, node) => {
    if (run === hovered) return;
    hovered = run;
    clearTimeout(waiting);
    waiting = setTimeout(() => emphasiseAll(hovered ?? picked, node), 120);
  };

  const hide = (run) => {
    if (!hidden.delete(run)) hidden.add(run);
    emphasiseAll(picked);
  };

  // Points with a report of their own: a click opens it, and the last one under the mouse stands as a link below.
  const pageOf = (point) => [point.pointNumber].flat().reduce((pages, at) => pages?.[at], point.data.meta?.pages);
  const offer = (node, point) => {
    const page = pageOf(point);
    node.classList.toggle("leads", Boolean(page));
    if (!page) return;
    const figure = document.getElementById(node.dataset.figure);
    const link = figure.querySelector("a.under") ?? document.createElement("a");
    if (!link.isConnected) figure.querySelector(".drawing").after(link);
    link.className = "under";
    link.href = page;
    link.textContent = `Report of the point ${page.split("/").at(-2)}`;
  };

  const listen = (node) => {
    node.on("plotly_hover", (event) => {
      offer(node, event.points[0]);
      hover(runOf(event.points[0]), node);
    });
    node.on("plotly_unhover", () => hover(null, node));
    node.on("plotly_click", (event) => {
      const point = event.points[0];
      const page = pageOf(point);
      if (page) window.location.assign(page);
      else if (runOf(point) !== null) pickRun(runOf(point));
    });
    for (const name of ["plotly_legendclick", "plotly_legenddoubleclick"]) {
      node.on(name, (event) => {
        const run = event.data[event.curveNumber].meta?.run;
        if (run && name === "plotly_legendclick") hide(run);
        return !run;
      });
    }
  };

  // --- drawing ---

  const draw = async (node) => {
    const { data, layout } = shown(node);
    const first = !node.classList.contains("js-plotly-plot");
    node.style.minHeight = `${layout.height}px`;
    await Plotly.react(node, grounded(data), merged(layout, theme(layout, false)), config);
    if (first) {
      listen(node);
      seen.observe(node);
    }
    if (picked !== null || hidden.size) emphasise(node, picked);
  };

  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) visible[isIntersecting ? "add" : "delete"](target);
  });

  const repaint = (print) => {
    for (const node of drawings()) {
      Plotly.relayout(node, theme(node.layout, print));
      for (const at of heats(node.data)) Plotly.restyle(node, { colorscale: [heated(node.data[at], print)] }, [at]);
    }
  };

  const pick = (select) => {
    const figure = document.getElementById(select.dataset.figure);
    const index = Number(select.value);
    figure.querySelectorAll(".view").forEach((view, at) => { view.hidden = at !== index; });
    const plot = figure.querySelector(".plot");
    if (plot) {
      plot.dataset.view = String(index);
      draw(plot);
    }
  };

  const pickFromAddress = () => {
    const [, named] = /^#run=(.*)$/.exec(window.location.hash) ?? [];
    const run = named === undefined ? null : escaped(decodeURIComponent(named));
    if (runs.has(run) && run !== picked) pickRun(run);
  };

  Promise.all([...document.querySelectorAll(".plot")].map(draw)).then(pickFromAddress);
  document.querySelectorAll("select[data-figure]").forEach((select) => {
    select.addEventListener("change", () => pick(select));
  });
  for (const button of buttons) button.addEventListener("click", () => pickRun(escaped(button.dataset.run)));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && picked !== null) pickRun(picked);
  });
  dark.addEventListener("change", () => repaint(false));
  window.addEventListener("beforeprint", () => repaint(true));
  window.addEventListener("afterprint", () => repaint(false));
})();
