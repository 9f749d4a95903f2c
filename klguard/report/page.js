"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /* Ink and grid in the colours of the page, as plotly names them. */
  const theme = () => ({
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    "font.color": color("--ink"),
    "xaxis.gridcolor": color("--grid"),
    "yaxis.gridcolor": color("--grid"),
    "yaxis.zerolinecolor": color("--faint"),
    "modebar.bgcolor": "rgba(0,0,0,0)",
    "modebar.color": color("--faint"),
    "modebar.activecolor": color("--accent"),
    "hoverlabel.bgcolor": color("--card"),
    "hoverlabel.bordercolor": color("--line"),
    "hoverlabel.font.color": color("--ink"),
  });

  const nested = (flat) => {
    const tree = {};
    for (const [path, value] of Object.entries(flat)) {
      const parts = path.split(".");
      const last = parts.pop();
      parts.reduce((node, part) => (node[part] ??= {}), tree)[last] = value;
    }
    return tree;
  };

  const merged = (base, extra) => {
    const result = { ...base };
    for (const [key, value] of Object.entries(extra)) {
      const both = result[key] && typeof value === "object" && !Array.isArray(value);
      result[key] = both ? merged(result[key], value) : value;
    }
    return result;
  };

  const font = { font: { family: getComputedStyle(document.body).fontFamily, size: 12 } };
  /* A list of its own: the standard one has a button that sends the chart to a server. */
  const buttons = ["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"];
  const config = { responsive: true, displaylogo: false, modeBarButtons: [buttons] };
  const plots = [];

  /* The same steps in every plot: zooming one zooms all. */
  let following = false;
  const follow = (source, event) => {
    const range = event["xaxis.range"] ?? [event["xaxis.range[0]"], event["xaxis.range[1]"]];
    const whole = event["xaxis.autorange"] === true;
    if (following || (!whole && range[0] === undefined)) return;
    following = true;
    const change = whole ? { "xaxis.autorange": true } : { "xaxis.range": range };
    const others = plots.filter((plot) => plot !== source).map((plot) => Plotly.relayout(plot, change));
    Promise.all(others).finally(() => { following = false; });
  };

  const drawn = figures.map((figure) => {
    const plot = document.getElementById("plot-" + figure.name);
    const layout = merged(merged(figure.layout, font), nested(theme()));
    plots.push(plot);
    return Plotly.newPlot(plot, figure.data, layout, config).then(() => {
      plot.on("plotly_relayout", (event) => follow(plot, event));
    });
  });
  Promise.all(drawn).then(() => { document.documentElement.dataset.drawn = String(plots.length); });
  dark.addEventListener("change", () => plots.forEach((plot) => Plotly.relayout(plot, theme())));
})();
