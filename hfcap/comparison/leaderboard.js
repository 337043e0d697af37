"use strict";
// The only script of the page. What strangers wrote comes in as JSON and goes out as text, never as HTML.
(() => {
  const PER_PAGE = 20;
  const compareText = new Intl.Collator(undefined, { numeric: true }).compare;

  // Tables of numbers: a click on a column's heading sorts by it, best first; another one turns the order round.
  for (const table of document.querySelectorAll("table.sortable")) {
    table.tHead.rows[0].querySelectorAll("th").forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const body = table.tBodies[0];
        const turned = heading.getAttribute("aria-sort") === "descending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", turned ? "ascending" : "descending");
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        const order = (first, second) => {
          const [a, b] = [key(first), key(second)];
          const [x, y] = [Number.parseFloat(a), Number.parseFloat(b)];
          if (column === 0) return compareText(b, a);
          return (Number.isNaN(y) ? -Infinity : y) - (Number.isNaN(x) ? -Infinity : x) || 0;
        };
        const rows = [...body.rows].sort(order);
        body.append(...(turned ? rows.reverse() : rows));
      });
    });
  }

  const section = document.getElementById("images");
  if (section === null) return;
  const { systems, rows } = JSON.parse(document.getElementById("images-data").textContent);
  const control = (name) => section.querySelector(`[name=${name}]`);
  const made = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  for (const row of rows) {
    row.words = [row.name, ...row.captions, ...row.human].filter((text) => text !== null).join("\n").toLowerCase();
  }

  let found = rows;
  let page = 0;

  const keyOf = (order) => {
    const [kind, number] = order.split(":");
    if (kind === "name") return null;
    return (row) => (kind === "value" ? row.values[number] : row.ahead[number])?.[0];
  };

  const entry = (row, against) => {
    const item = made("li");
    if (against !== null && row.ahead[against] !== null) {
      const [ahead, text] = row.ahead[against];
      item.append(made("span", text, { class: ahead > 0 ? "win" : ahead < 0 ? "loss" : "tie" }));
    }
    item.append(made("small", row.name, { dir: "auto" }));
    if (row.image) item.append(made("img", undefined, { alt: row.name, src: row.image }));
    else if (row.image === "") item.append(made("p", "The image cannot be read."));
    systems.forEach((name, number) => {
      if (row.values[number] === null) return;
      const line = made("p");
      line.append(made("span", String(number + 1), { class: "number", title: name }), " ");
      if (row.captions[number] !== null) {
        line.append(made("span", row.captions[number], { class: "caption", dir: "auto" }), " ");
      }
      line.append(made("small", row.values[number][1]));
      item.append(line);
    });
    if (row.human.length) {
      const list = made("ul", undefined, { class: "references" });
      list.append(...row.human.map((text) => made("li", text, { dir: "auto" })));
      item.append(made("small", "People wrote:"), list);
    }
    return item;
  };

  const show = () => {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const shown = found.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
    const against = control("against") === null ? null : Number(control("against").value);
    section.querySelector(".examples").replaceChildren(...shown.map((row) => entry(row, against)));
    const first = page * PER_PAGE + 1;
    section.querySelector(".count").textContent = shown.length
      ? `${first} to ${first + shown.length - 1} of ${found.length}`
      : "no image";
    control("back").disabled = page === 0;
    control("on").disabled = page === pages - 1;
  };

  const update = () => {
    const wanted = control("search").value.trim().toLowerCase();
    const against = control("against") === null ? null : Number(control("against").value);
    const outcome = control("outcome")?.value ?? "all";
    const order = control("order").value;
    const matches = (row) => {
      if (wanted && !row.words.includes(wanted)) return false;
      if (outcome === "all") return true;
      const ahead = row.ahead[against]?.[0];
      if (outcome === "won") return ahead > 0;
      if (outcome === "lost") return ahead < 0;
      return ahead === 0;
    };
    found = rows.filter(matches);
    if (order !== "random") {
      const [column, direction] = order.split("|");
      const key = keyOf(column.replace("against", String(against)));
      const missing = (value) => value === undefined || value === null;
      found.sort((first, second) => {
        if (key === null) return compareText(first.name, second.name);
        const [a, b] = [key(first), key(second)];
        if (missing(a) || missing(b)) return Number(missing(a)) - Number(missing(b));
        return direction === "down" ? b - a : a - b;
      });
    }
    page = 0;
    show();
  };

  const shuffle = () => {
    for (let last = rows.length - 1; last > 0; last -= 1) {
      const other = Math.floor(Math.random() * (last + 1));
      [rows[last], rows[other]] = [rows[other], rows[last]];
    }
    control("order").value = "random";
    update();
  };

  for (const name of ["search", "against", "outcome", "order"]) control(name)?.addEventListener("input", update);
  control("sample").addEventListener("click", shuffle);
  control("back").addEventListener("click", () => { page -= 1; show(); });
  control("on").addEventListener("click", () => { page += 1; show(); });
  section.hidden = false;
  update();
})();
