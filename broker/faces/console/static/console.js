// Keeps pages live, counts down, and listens to keys. Everything it does can be done without it by links and forms.
"use strict";

(() => {
  const loadedAt = Date.now();
  const KEYS_AFTER_MS = 700; // a key meant for the page before must not decide on this one

  // ---- live: the stream says that something changed, the page asks for what it shows
  function listen() {
    const where = document.body.dataset.events;
    if (!where || !window.EventSource) return;
    const stream = new EventSource(where);
    let first = true;
    stream.addEventListener("holds", (event) => {
      const waiting = Number.parseInt(event.data, 10) || 0;
      for (const badge of document.querySelectorAll("[data-waiting]")) badge.textContent = String(waiting);
      document.title = (waiting ? `(${waiting}) ` : "") + document.title.replace(/^\(\d+\) /, "");
      if (!first || waitingShown() !== waiting) document.body.dispatchEvent(new CustomEvent("holds"));
      first = false;
    });
    window.addEventListener("pagehide", () => stream.close());
  }

  function waitingShown() {
    return document.getElementById("inbox") ? document.querySelectorAll("[data-card]").length : -1;
  }

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
  }

  // ---- keys
  let chosen = "";
  function choose(step) {
    const cards = [...document.querySelectorAll("[data-card]")];
    if (!cards.length) return;
    const at = cards.findIndex((card) => card.id === chosen);
    const card = cards[Math.min(cards.length - 1, Math.max(0, at < 0 ? 0 : at + step))];
    for (const one of cards) one.classList.toggle("chosen", one === card);
    chosen = card.id;
    card.querySelector("[data-open]").focus();
    card.scrollIntoView({ block: "nearest" });
  }
  function open(anchor) {
    const card = document.getElementById(chosen) || document.querySelector("[data-card]");
    const link = card && card.querySelector("[data-open]");
    if (link) window.location.assign(link.getAttribute("href") + anchor);
  }
  document.addEventListener("keydown", (event) => {
    const target = event.target;
    const typing = target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.defaultPrevented) return;
    if (event.key === "j") choose(1);
    else if (event.key === "k") choose(-1);
    else if (event.key === "a" || event.key === "d") {
      if (document.getElementById("inbox")) return open(event.key === "a" ? "#approve" : "#deny");
      if (Date.now() - loadedAt < KEYS_AFTER_MS) return;
      const wanted = document.querySelector(`[data-key="${event.key}"]`);
      if (!wanted) return;
      event.preventDefault();
      if (event.key === "a") wanted.form.requestSubmit(wanted);
      else wanted.focus();
    }
  });

  // ---- one decision a page: a second click does nothing
  document.addEventListener("submit", (event) => {
    if (event.target.dataset.sent) return event.preventDefault();
    event.target.dataset.sent = "yes";
  });
  window.addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });

  listen();
  count();
  window.setInterval(count, 1000);
})();
