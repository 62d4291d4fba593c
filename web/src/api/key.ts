// The API key of a server that has some. It stays in this tab, unless the user wants it remembered.
import { signal } from "@preact/signals";

const NAME = "ponder.key";

function stored(storage: () => Storage): string | null {
  // A browser that blocks storage throws at the first touch.
  try {
    return storage().getItem(NAME);
  } catch {
    return null;
  }
}

export const key = signal(
  stored(() => sessionStorage) ?? stored(() => localStorage) ?? "",
);
export const isRemembered = signal(stored(() => localStorage) !== null);
/** The dialog that asks for a key is open; it says why. */
export const keyDialog = signal<"closed" | "asked" | "refused">("closed");

export function setKey(value: string, remember: boolean): void {
  key.value = value.trim();
  isRemembered.value = remember && key.value !== "";
  try {
    sessionStorage.removeItem(NAME);
    localStorage.removeItem(NAME);
    const storage = isRemembered.value ? localStorage : sessionStorage;
    if (key.value !== "") storage.setItem(NAME, key.value);
  } catch {
    // The key then lives as long as the page.
  }
}
