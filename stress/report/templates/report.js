"use strict";
document.documentElement.classList.add("js");
for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const svg = figure.querySelector("svg"), cursor = svg.querySelector(".cursor"), output = figure.querySelector("output");
  const slider = figure.querySelector("input[type=range]"), table = figure.querySelector("table");
  const rows = [...table.tBodies[0].rows], head = [...table.tHead.rows[0].cells].map(cell => cell.textContent);
  const at = rows.map(row => Number(row.dataset.at));
  const show = place => {
    const cells = [...rows[place].cells].map(cell => cell.textContent);
    const said = cells.slice(1).map((text, series) => text && `${head[series + 1]} ${text}`).filter(Boolean).join(" · ");
    output.textContent = `${head[0]} ${cells[0]}: ${said || "nothing"}`;
    slider.value = place;
    slider.setAttribute("aria-valuetext", output.textContent);
    cursor.setAttribute("x1", at[place]); cursor.setAttribute("x2", at[place]);
    cursor.style.visibility = "visible";
  };
  slider.addEventListener("input", () => show(Number(slider.value)));
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    let best = 0;
    at.forEach((place, number) => { if (Math.abs(place - x) < Math.abs(at[best] - x)) best = number; });
    show(best);
  });
  for (const button of figure.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", on);
      svg.querySelector(`[data-series="${button.dataset.series}"]`).classList.toggle("off", !on);
    });
  }
}
addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("details[data-print]")) each.open = true; });
