// Comfort on top of pages that work without it: single-key answers, and a form that is sent once.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // A second click while the first is on its way sends nothing. (The server would count it once all the same.)
  for (const form of document.querySelectorAll("form[data-once]")) {
    form.addEventListener("submit", (event) => {
      if (form.dataset.sent) event.preventDefault();
      form.dataset.sent = "yes";
    });
  }
  addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-once]")) delete form.dataset.sent;
  });

  const form = document.getElementById("answer");
  const shortcuts = document.getElementById("shortcuts");
  if (!form || !shortcuts) return;

  // Single keys can be switched off (WCAG 2.1.4), for who speaks to the computer.
  const NAME = "single-keys";
  const keep = (value) => { try { localStorage.setItem(NAME, value); } catch { /* no storage: for this page only */ } };
  const kept = () => { try { return localStorage.getItem(NAME); } catch { return null; } };
  shortcuts.closest(".keys").hidden = false;
  shortcuts.checked = kept() !== "off";
  const inputs = new Map([...form.querySelectorAll("input[data-key]")].map((input) => [input.dataset.key, input]));
  const show = () => {
    root.classList.toggle("plain", !shortcuts.checked);
    for (const [key, input] of inputs) {
      if (shortcuts.checked) input.setAttribute("aria-keyshortcuts", key);
      else input.removeAttribute("aria-keyshortcuts");
    }
  };
  shortcuts.addEventListener("change", () => { keep(shortcuts.checked ? "on" : "off"); show(); });
  show();

  addEventListener("keydown", (event) => {
    if (!shortcuts.checked || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    const input = inputs.get(event.key.toUpperCase());
    if (input) {
      input.checked = true;
      event.preventDefault();
    } else if (event.key === "Enter" && !event.target.closest("a, button, input")) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
})();
