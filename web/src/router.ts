// Where the page is: `#/view/argument`.
import { signal } from "@preact/signals";

export const VIEWS = ["chat", "search", "traces", "server"] as const;
export type View = (typeof VIEWS)[number];

export interface Route {
  view: View;
  argument: string;
}

function parse(hash: string): Route {
  const [, name = "", ...rest] = hash.split("/");
  const view = VIEWS.find((it) => it === name) ?? "chat";
  let argument = rest.join("/");
  try {
    argument = decodeURIComponent(argument);
  } catch {
    // A half-typed escape stands for itself.
  }
  return { view, argument };
}

export const route = signal<Route>(parse(location.hash));

export function href(view: View, argument = ""): string {
  return argument === "" ? `#/${view}` : `#/${view}/${encodeURIComponent(argument)}`;
}

export function go(view: View, argument = ""): void {
  location.hash = href(view, argument);
}

export function startRouter(): void {
  window.addEventListener("hashchange", () => {
    route.value = parse(location.hash);
  });
}
