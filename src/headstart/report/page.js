// Draws the charts, in the colours of the style sheet; again when the theme changes and before printing.
const figures = JSON.parse(document.getElementById("charts").textContent);

function inColors(value, style) {
  if (typeof value === "string") {
    const name = value.match(/^var\((--[\w-]+)\)$/)?.[1];
    return name === undefined ? value : style.getPropertyValue(name).trim();
  }
  if (Array.isArray(value)) {
    return value.map((each) => inColors(each, style));
  }
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, inColors(each, style)]));
  }
  return value;
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  for (const element of document.querySelectorAll("[data-chart]")) {
    const figure = figures[element.dataset.chart];
    const layout = { ...inColors(figure.layout, style), width: element.clientWidth, autosize: false };
    Plotly.react(element, inColors(figure.data, style), layout, { displayModeBar: false });
  }
  // For whoever waits for it.
  document.documentElement.dataset.drawn = `${style.getPropertyValue("--ink").trim()} at ${window.innerWidth}`;
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function start() {
  if (!("DecompressionStream" in window)) {
    for (const element of document.querySelectorAll("[data-chart]")) {
      element.textContent = "This chart needs a browser of 2023 or later.";
    }
    return;
  }
  const script = document.createElement("script");
  script.textContent = await unpack(document.getElementById("plotly").textContent);
  document.head.append(script);
  draw();
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) { // a phone's bars change the height as it scrolls
      width = window.innerWidth;
      draw();
    }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  matchMedia("print").addEventListener("change", draw);
  for (const event of ["beforeprint", "afterprint"]) {
    window.addEventListener(event, draw);
  }
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) {
      details.open = true;
    }
  });
}

start();
