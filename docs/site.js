// tables and charts that scroll sideways are reached by the keyboard too
function reach() {
  for (const wide of document.querySelectorAll("table, .cell_output")) {
    if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
  }
}
addEventListener("load", reach);
addEventListener("resize", reach);
