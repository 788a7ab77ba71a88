// Light, dark, or the system's theme. A classic script that runs before the page renders.

(() => {
  const KEY = "yocobit.theme";
  const root = document.documentElement;
  const isDarkBySystem = matchMedia("(prefers-color-scheme: dark)");

  function chosen() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null;
    }
  }

  function show(theme) {
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
  }

  /** Toggle light and dark; the system's own theme is not stored. */
  function toggle() {
    const bySystem = isDarkBySystem.matches ? "dark" : "light";
    const other = (root.dataset.theme ?? bySystem) === "dark" ? "light" : "dark";
    const theme = other === bySystem ? null : other;
    show(theme);
    try {
      if (theme) localStorage.setItem(KEY, theme);
      else localStorage.removeItem(KEY);
    } catch {
      // no storage: kept until the page is closed
    }
  }

  show(chosen());
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", toggle);
  });
})();
