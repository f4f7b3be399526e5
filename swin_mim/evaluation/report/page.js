"use strict";
(() => {
  const EVERY = 5000; // ms between two looks at a run that goes on
  const coarse = matchMedia("(pointer: coarse)").matches;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dashes = ["solid", "dash", "dot", "dashdot"], symbols = ["circle", "square", "diamond", "cross"];
  let data = {};
  let shown = null; // [first, last] step that all curves show; null: the whole run
  let quiet = false; // while the page itself moves the axes

  const plots = () => [...document.querySelectorAll(".plot")];
  const chartOf = (plot) => data.charts[plot.dataset.chart];
  const whole = () => {
    const ends = Object.values(data.charts).flatMap((chart) => chart.lines.flatMap((line) => [line.x[0], line.x.at(-1)]));
    return [Math.min(...ends), Math.max(...ends)];
  };

  function traces(chart) {
    const several = data.runs > 1;
    const hue = (line) => colour(`--c${(several ? line.run : line.metric) % 6}`);
    const lines = chart.lines.map((line) => ({
      x: line.x, y: line.y, name: line.name, type: "scatter", mode: line.points && line.x.length > 1 ? "lines+markers" : line.points ? "markers" : "lines",
      line: { color: hue(line), width: 2, dash: several ? dashes[line.metric % 4] : "solid" },
      marker: { size: 4.5, color: hue(line), symbol: several ? symbols[line.metric % 4] : "circle" }, cliponaxis: false,
      hovertemplate: chart.percent ? "%{y:.1%}" : "%{y:.4~g}",
    }));
    const [first, last] = whole();
    const levels = chart.levels.map((level) => ({
      x: [first, last], y: [level.y, level.y], name: level.name, type: "scatter", mode: "lines", hoverinfo: "skip",
      line: { color: chart.key === "probe" || several ? hue(level) : colour("--level"), width: 1.5, dash: level.metric % 2 && chart.key !== "probe" ? "dot" : "dash" },
    }));
    return [...lines, ...levels];
  }

  function span(chart, logarithmic) {
    // the vertical axis follows what is seen
    const [first, last] = shown ?? whole();
    const seen = chart.lines.flatMap((line) => {
      const inside = line.y.filter((_, i) => line.x[i] >= first && line.x[i] <= last);
      return inside.length ? inside : line.y;
    });
    const values = [...seen, ...chart.levels.map((level) => level.y)].filter((value) => !logarithmic || value > 0);
    if (!values.length) return undefined;
    let low = Math.min(...values), high = Math.max(...values);
    if (logarithmic) {
      low = Math.log10(low); high = Math.log10(high);
    } else if (chart.zero || (low > 0 && low < 0.4 * high)) {
      low = Math.min(0, low);
    }
    if (chart.percent && high - low < 0.1) {
      low = Math.max(0, Math.min(low, (low + high) / 2 - 0.05));
      high = low + 0.1;
    }
    const room = 0.06 * (high - low || Math.abs(high) || 1);
    return [low === 0 && !logarithmic ? 0 : low - room, high + room];
  }

  function layout(chart) {
    const logarithmic = chart.logarithmic && Boolean(document.getElementById("logarithmic")?.checked);
    const [first, last] = whole();
    const steps = shown ?? (last > first ? [first - 0.02 * (last - first), last + 0.02 * (last - first)] : [first - 1, last + 1]);
    const few = steps[1] - steps[0] < 8 ? { dtick: 1 } : { nticks: 7 }; // no tick between two steps
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--line"), zeroline: false, color: colour("--soft"), automargin: true };
    return {
      autosize: true,
      margin: { l: 8, r: 8, t: 8, b: 8 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("--soft") },
      showlegend: chart.lines.length + chart.levels.length > 1,
      legend: { orientation: "h", maxheight: 1, x: 0, y: -0.16, yanchor: "top", font: { color: colour("--ink") }, bgcolor: "rgba(0,0,0,0)" },
      hovermode: "x unified",
      hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      dragmode: coarse ? false : "zoom",
      xaxis: { ...axis, range: steps, showgrid: false, ticks: "outside", ticklen: 4, tickcolor: colour("--line"), tickformat: ",d", ...few, hoverformat: ",d", unifiedhovertitle: { text: "step %{x:,d}" } },
      yaxis: { ...axis, type: logarithmic ? "log" : "linear", range: span(chart, logarithmic), fixedrange: true, tickformat: chart.percent ? ".0%" : undefined, nticks: 6, exponentformat: "power" },
    };
  }

  function makeRoom(plot, chart) {
    // a legend of many lines is below the curves, and takes nothing of their height
    const names = [...chart.lines, ...chart.levels].map((each) => each.name.length);
    const columns = Math.max(1, Math.floor(plot.clientWidth / (6.6 * Math.max(...names) + 55)));
    const more = Math.max(0, Math.ceil(names.length / columns) - 2);
    plot.style.height = "";
    if (more) plot.style.height = `${plot.clientHeight + 19 * more}px`;
  }

  function draw() {
    for (const plot of plots()) {
      const chart = chartOf(plot);
      makeRoom(plot, chart);
      Plotly.react(plot, traces(chart), layout(chart), { displayModeBar: false, responsive: true, doubleClick: false });
      if (!plot.dataset.listens) {
        plot.dataset.listens = "yes";
        plot.on("plotly_relayout", (change) => {
          if (quiet || change["xaxis.range[0]"] === undefined) return;
          show([change["xaxis.range[0]"], change["xaxis.range[1]"]]);
        });
        plot.on("plotly_doubleclick", () => show(null));
        plot.addEventListener("keydown", keys);
      }
    }
  }

  function show(range) {
    // all curves show the same steps
    const [first, last] = whole();
    shown = range && range[1] - range[0] < last - first ? [Math.max(first, range[0]), Math.min(last, range[1])] : null;
    if (shown && shown[1] - shown[0] < 1e-9) shown = null;
    quiet = true;
    try { draw(); } finally { quiet = false; }
  }

  function zoom(factor, moved = 0) {
    const [first, last] = whole();
    const [from, to] = shown ?? [first, last];
    const width = Math.max((to - from) * factor, Math.min(1, last - first));
    let start = (from + to) / 2 - width / 2 + moved * width;
    start = Math.min(Math.max(first, start), Math.max(first, last - width));
    show([start, start + width]);
  }

  function keys(event) {
    const todo = {
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), "0": () => show(null), Home: () => show(null),
      ArrowLeft: () => zoom(1, -0.25), ArrowRight: () => zoom(1, 0.25),
    }[event.key];
    if (!todo || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    todo();
  }

  function slides() {
    for (const figure of document.querySelectorAll(".frames")) {
      const frames = data.frames[figure.dataset.frames], slider = figure.querySelector("input");
      const images = [...figure.querySelectorAll("img")];
      const last = images.map((image) => ({ src: image.src, alt: image.alt }));
      if (!slider) continue;
      slider.addEventListener("input", () => {
        const place = Number(slider.value), frame = frames[place];
        images.forEach((image, i) => {
          const parts = frame.parts ?? last.map((each) => each.src);
          image.hidden = parts[i] === undefined;
          if (parts[i] !== undefined) image.src = parts[i];
          image.alt = last[i].alt.replace(`step ${frames.at(-1).step}`, `step ${frame.step}`);
        });
        slider.setAttribute("aria-valuetext", `step ${frame.step}`);
        figure.querySelector("output").textContent = frame.step.toLocaleString("en");
      });
    }
  }

  function start() {
    data = JSON.parse(document.getElementById("report-data").textContent);
    slides();
    if (!plots().length) return;
    document.getElementById("zoom-in")?.addEventListener("click", () => zoom(0.5));
    document.getElementById("zoom-out")?.addEventListener("click", () => zoom(2));
    document.getElementById("zoom-all")?.addEventListener("click", () => show(null));
    document.getElementById("logarithmic")?.addEventListener("change", draw);
    draw();
  }

  function replace(text) {
    // what the reader has opened, chosen and focused stays so
    const content = document.getElementById("content");
    const open = [...content.querySelectorAll("details[open]")].map((each) => each.id);
    const checked = document.getElementById("logarithmic")?.checked;
    const held = [...content.querySelectorAll(".frames input")].filter((each) => each.value !== each.max).map((each) => [each.id, each.value]);
    const focused = document.activeElement?.id, top = scrollY;
    plots().forEach((plot) => Plotly.purge(plot));
    content.innerHTML = text;
    open.forEach((id) => { const each = document.getElementById(id); if (each) each.open = true; });
    if (checked) document.getElementById("logarithmic").checked = true;
    start();
    for (const [id, value] of held) {
      const slider = document.getElementById(id);
      if (slider) { slider.value = value; slider.dispatchEvent(new Event("input")); }
    }
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    scrollTo({ top, behavior: "instant" });
  }

  function follow() {
    const said = document.getElementById("live");
    let version = document.body.dataset.live, timer = 0;
    const look = async () => {
      clearTimeout(timer);
      try {
        const answer = await fetch("body", { headers: { "If-None-Match": version }, cache: "no-store" });
        if (answer.status === 200) {
          version = answer.headers.get("ETag");
          replace(await answer.text());
        } else if (answer.status !== 304) {
          throw new Error(String(answer.status));
        }
        said.textContent = "Follows the run.";
      } catch {
        said.textContent = "No longer updated: swin-mim report --serve has ended.";
      }
      timer = setTimeout(look, EVERY);
    };
    timer = setTimeout(look, EVERY);
    addEventListener("focus", look); // browsers slow the clock of a page behind others
  }

  start();
  dark.addEventListener("change", draw);
  if (document.body.hasAttribute("data-live")) follow();
})();
