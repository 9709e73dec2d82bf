// Fills in what depends on the machine: machine.js beside the page sets REPRISE_MACHINE. Without it the dashes stay.
for (const row of document.querySelectorAll("[data-run]")) {
  const facts = (window.REPRISE_MACHINE || {})[row.dataset.run];
  if (!facts) continue;
  for (const name of ["time", "memory", "latency", "hardware", "software"]) {
    if (facts[name]) row.querySelector(`[data-fact="${name}"]`).textContent = facts[name];
  }
  const runs = row.querySelector('[data-fact="runs"]');
  runs.replaceChildren(...facts.runs.map(({ name, url }) => {
    const linked = /^https?:/.test(url || "");
    const item = document.createElement(linked ? "a" : "span");
    item.textContent = name;
    if (linked) item.href = url;
    return item;
  }));
}
