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

// The time of several trainings together; a dash if one of them was not run on this machine.
for (const cell of document.querySelectorAll("[data-trainings]")) {
  const times = cell.dataset.trainings.split(" ").map((run) => ((window.REPRISE_MACHINE || {})[run] || {}).time);
  if (!times.every(Boolean)) continue;
  const units = { h: 3600, min: 60, s: 1 };
  let seconds = 0;
  for (const [, number, unit] of times.join(" ").matchAll(/([\d.]+) (h|min|s)/g)) seconds += number * units[unit];
  cell.textContent = seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds / 60)} min`;
}

// Clips play in a loop, or stand still for readers who want no motion; a button of each gallery changes that.
for (const gallery of document.querySelectorAll(".gallery")) {
  const stills = gallery.querySelectorAll("source.still");
  if (!stills.length) continue;
  const button = document.createElement("button");
  button.type = "button";
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const show = () => {
    for (const still of stills) still.media = playing ? "not all" : "all";
    button.textContent = playing ? "Stop the clips" : "Play the clips";
  };
  button.addEventListener("click", () => { playing = !playing; show(); });
  gallery.querySelector("ol").before(button);
  show();
}

// Names above the curves of trainings single out their own curves, as many as are chosen.
for (const trainings of document.querySelectorAll(".trainings")) {
  const names = [...trainings.querySelectorAll("button[data-curve]")];
  const isChosen = (name) => name.getAttribute("aria-pressed") === "true";
  for (const name of names) {
    name.addEventListener("click", () => {
      name.setAttribute("aria-pressed", String(!isChosen(name)));
      const chosen = names.filter(isChosen).map((each) => each.dataset.curve);
      for (const curve of trainings.querySelectorAll("g[data-curve]")) {
        curve.classList.toggle("faint", chosen.length > 0 && !chosen.includes(curve.dataset.curve));
      }
    });
  }
}
