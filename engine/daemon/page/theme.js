// Light or dark, before anything is shown: loaded in the head and not deferred, else the page would flash.

(() => {
  let word = null;
  try {
    word = localStorage.getItem("towpath-theme");
  } catch {
    // A browser that stores nothing follows its system.
  }
  if (word === "light" || word === "dark") document.documentElement.setAttribute("data-theme", word);
})();
