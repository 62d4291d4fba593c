// Light, dark, or as the system has it.
import { computed, effect, signal } from "@preact/signals";

export type Theme = "system" | "light" | "dark";
const NAME = "ponder.theme";

function stored(): Theme {
  try {
    const value = localStorage.getItem(NAME);
    return value === "light" || value === "dark" ? value : "system";
  } catch {
    return "system";
  }
}

export const theme = signal<Theme>(stored());
const query = window.matchMedia("(prefers-color-scheme: dark)");
const systemIsDark = signal(query.matches);
query.addEventListener("change", () => (systemIsDark.value = query.matches));

export const isDark = computed(() =>
  theme.value === "system" ? systemIsDark.value : theme.value === "dark",
);

export function startTheme(): void {
  effect(() => {
    document.documentElement.dataset["theme"] = isDark.value ? "dark" : "light";
    try {
      if (theme.value === "system") localStorage.removeItem(NAME);
      else localStorage.setItem(NAME, theme.value);
    } catch {
      // The choice then lasts as long as the page.
    }
  });
}

export function nextTheme(): void {
  theme.value = isDark.value ? "light" : "dark";
}
