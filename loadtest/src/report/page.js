"use strict";
const tip = document.getElementById("tip");
for (const svg of document.querySelectorAll("svg.chart")) {
  const marks = [...svg.querySelectorAll("[data-t]")];
  const ring = svg.querySelector(".ring");
  const places = marks.map((mark) => [mark.cx.baseVal.value, mark.cy.baseVal.value]);
  let shown = -1;
  const hide = () => { shown = -1; tip.hidden = true; ring.style.visibility = "hidden"; };
  const show = (index) => {
    if (index < 0 || index >= marks.length) return;
    shown = index;
    const [x, y] = places[index];
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    ring.style.visibility = "visible";
    tip.textContent = marks[index].parentNode.dataset.s + ": " + marks[index].dataset.t;
    tip.hidden = false;
    const at = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
    const left = Math.min(Math.max(4, at.x + 12), innerWidth - tip.offsetWidth - 4);
    const above = at.y - tip.offsetHeight - 10;
    tip.style.left = left + "px";
    tip.style.top = (above < 4 ? at.y + 14 : above) + "px";
  };
  const point = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let best = -1;
    let least = Infinity;
    places.forEach(([x, y], index) => {
      const far = (x - at.x) ** 2 + (y - at.y) ** 2;
      if (far < least) { least = far; best = index; }
    });
    show(best);
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) { show(Math.min(Math.max(0, shown + step), marks.length - 1)); event.preventDefault(); }
    if (event.key === "Escape") hide();
  });
}
