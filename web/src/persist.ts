// Signals that outlive the page, in localStorage.
import { effect, signal, type Signal } from "@preact/signals";

/** A signal whose value is kept under a name. Fields that a later page adds get their defaults. */
export function kept<T extends object>(name: string, initial: T): Signal<T> {
  const value = signal<T>({ ...initial, ...read(name) });
  effect(() => {
    try {
      localStorage.setItem(name, JSON.stringify(value.value));
    } catch {
      // The value then lasts as long as the page.
    }
  });
  return value;
}

function read(name: string): object {
  try {
    const found: unknown = JSON.parse(localStorage.getItem(name) ?? "{}");
    return typeof found === "object" && found !== null ? found : {};
  } catch {
    return {};
  }
}
