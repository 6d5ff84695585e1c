"use strict";
(() => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };

  const colours = (print) => {
    if (print) return { ink: "#000000", line: "#bbbbbb", paper: "#ffffff" };
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    return { ink: read("--ink"), line: read("--line"), paper: read("--paper") };
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

  const draw = (node) => {
    const { data, layout } = plots[node.dataset.figure][Number(node.dataset.view)];
    node.style.minHeight = `${layout.height}px`;
    return Plotly.react(node, data, merged(layout, theme(layout, false)), config);
  };

  const repaint = (print) => {
    for (const node of document.querySelectorAll(".plot.js-plotly-plot")) {
      Plotly.relayout(node, theme(node.layout, print));
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

  document.querySelectorAll(".plot").forEach(draw);
  document.querySelectorAll("select[data-figure]").forEach((select) => {
    select.addEventListener("change", () => pick(select));
  });
  dark.addEventListener("change", () => repaint(false));
  window.addEventListener("beforeprint", () => repaint(true));
  window.addEventListener("afterprint", () => repaint(false));
})();
