// Keeps pages live, counts down, and listens to keys. Everything it does can be done without it by links and forms.
"use strict";

(() => {
  const loadedAt = Date.now();
  const KEYS_AFTER_MS = 700; // a key meant for the page before must not decide on this one
  const SILENT_MS = 40_000; // the stream beats every 15 s: this long without is a dead one
  const LONGEST_WAIT_MS = 30_000;

  // ---- live: the stream says that something changed, the page asks for what it shows
  let stream = null;
  let heardAt = Date.now();
  let tries = 0;

  function listen() {
    const where = document.body.dataset.events;
    if (!where || !window.EventSource) return;
    let first = true;
    stream = new EventSource(where);
    stream.addEventListener("open", () => { tries = 0; heardAt = Date.now(); tell(true); });
    stream.addEventListener("beat", () => { heardAt = Date.now(); tell(true); });
    stream.addEventListener("holds", (event) => {
      heardAt = Date.now();
      tell(true);
      const waiting = Number.parseInt(event.data, 10) || 0;
      for (const badge of document.querySelectorAll("[data-waiting]")) badge.textContent = String(waiting);
      document.title = (waiting ? `(${waiting}) ` : "") + document.title.replace(/^\(\d+\) /, "");
      if (!first || shown() !== waiting) document.body.dispatchEvent(new CustomEvent("holds"));
      first = false;
    });
    stream.addEventListener("error", () => {
      tell(false);
      if (stream.readyState === EventSource.CLOSED) again(); // refused: the browser does not try by itself then
    });
  }
  function again() {
    stream.close();
    tell(false);
    tries += 1;
    window.setTimeout(listen, Math.min(LONGEST_WAIT_MS, 1000 * 2 ** Math.min(tries, 5)));
  }
  function tell(live) {
    const said = document.getElementById("live");
    if (!said || said.dataset.live === String(live)) return;
    said.dataset.live = String(live);
    said.textContent = live ? "Live" : `Not live since ${new Date().toLocaleTimeString()}: what you see may be old. Trying again.`;
  }
  function shown() {
    const inbox = document.getElementById("inbox");
    return inbox ? Number(inbox.dataset.waitingShown) : -1;
  }
  window.addEventListener("pagehide", () => stream && stream.close());

  // ---- time left
  const skew = () => Number(document.body.dataset.now || loadedAt) - loadedAt;
  function span(ms) {
    const s = Math.floor(ms / 1000);
    if (s < 60) return `${s} s`;
    const m = Math.floor(s / 60);
    if (m < 60) return `${m} min`;
    const h = Math.floor(m / 60);
    if (h < 48) return m % 60 ? `${h} h ${m % 60} min` : `${h} h`;
    const d = Math.floor(h / 24);
    return h % 24 ? `${d} d ${h % 24} h` : `${d} d`;
  }
  function count() {
    const now = Date.now() + skew();
    for (const time of document.querySelectorAll("time[data-until]")) {
      const left = Number(time.dataset.until) - now;
      const text = left > 0 ? span(left) : "no time";
      if (time.textContent !== text) time.textContent = text;
    }
    if (stream && stream.readyState !== EventSource.CLOSED && Date.now() - heardAt > SILENT_MS) {
      heardAt = Date.now();
      again();
    }
  }

  // ---- keys
  let chosen = "";
  const choices = () => [...document.querySelectorAll("[data-card], tr[data-row]")];
  const linkOf = (choice) => choice && choice.querySelector("[data-open]");
  function choose(step) {
    const all = choices();
    if (!all.length) return;
    const at = all.findIndex((one) => one.id === chosen);
    const now = all[Math.min(all.length - 1, Math.max(0, at < 0 ? 0 : at + step))];
    for (const one of all) one.classList.toggle("chosen", one === now);
    chosen = now.id;
    linkOf(now).focus();
    now.scrollIntoView({ block: "nearest" });
  }
  function open(anchor) {
    const link = linkOf(document.getElementById(chosen) || choices()[0]);
    if (link) window.location.assign(link.getAttribute("href") + anchor);
  }
  function help() {
    const dialog = document.getElementById("keys");
    if (dialog && !dialog.open) dialog.showModal();
  }
  const keys = {
    j: () => choose(1),
    k: () => choose(-1),
    "?": help,
    "/": () => {
      const field = document.querySelector("[data-filters] input, [data-filters] select");
      if (field) field.focus();
    },
    a: () => decide("a"),
    d: () => decide("d"),
  };
  function decide(key) {
    if (document.getElementById("inbox")) return open(key === "a" ? "#approve" : "#deny");
    if (Date.now() - loadedAt < KEYS_AFTER_MS) return undefined;
    const wanted = document.querySelector(`[data-key="${key}"]`);
    if (!wanted) return undefined;
    if (key === "a") return wanted.form.requestSubmit(wanted);
    return wanted.focus();
  }
  document.addEventListener("keydown", (event) => {
    const target = event.target;
    const typing = target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.defaultPrevented) return;
    if (document.querySelector("dialog[open]") || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  });
  for (const button of document.querySelectorAll("[data-keys]")) {
    button.hidden = false;
    button.addEventListener("click", help);
  }

  // ---- forms: a filter applies when it is chosen; one decision a page, a second click does nothing
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-filters] select")) event.target.form.requestSubmit();
  });
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method === "get") {
      for (const field of form.elements) if (field.name && !field.value) field.disabled = true; // short addresses
    } else if (form.method === "post") {
      if (form.dataset.sent) return event.preventDefault();
      form.dataset.sent = "yes";
      if (event.submitter) event.submitter.setAttribute("aria-busy", "true"); // in a slow network: it is at work
    }
    return undefined;
  });
  window.addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
    for (const field of document.querySelectorAll("form :disabled")) field.disabled = false;
    for (const button of document.querySelectorAll("[aria-busy]")) button.removeAttribute("aria-busy");
  });

  listen();
  count();
  window.setInterval(count, 1000);
})();
