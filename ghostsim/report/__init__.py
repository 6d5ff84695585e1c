"""Plotly figures and HTML pages made from a run folder."""
