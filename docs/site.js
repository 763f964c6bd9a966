// tables that scroll sideways are reached by the keyboard too
function reach() {
  for (const table of document.querySelectorAll("table")) {
    if (table.scrollWidth > table.clientWidth) table.tabIndex = 0;
  }
}
addEventListener("load", reach);
addEventListener("resize", reach);
