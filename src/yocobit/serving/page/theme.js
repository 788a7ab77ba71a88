// Light, dark, or as the system is. A classic script before the page, so that it never flashes.

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

  /** Change to the other of light and dark; what the system has anyway is not remembered. */
  function toggle() {
    const bySystem = isDarkBySystem.matches ? "dark" : "light";
    const other = (root.dataset.theme ?? bySystem) === "dark" ? "light" : "dark";
    const theme = other === bySystem ? null : other;
    show(theme);
    try {
      if (theme) localStorage.setItem(KEY, theme);
      else localStorage.removeItem(KEY);
    } catch {
      // no storage: it holds until the page is left
    }
  }

  show(chosen());
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", toggle);
  });
})();
