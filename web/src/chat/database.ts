// Conversations in the browser's IndexedDB. Where a browser has none (some private windows), they
// live as long as the page.
import type { Conversation } from "./conversation";

const NAME = "ponder";
const STORE = "conversations";

let opened: Promise<IDBDatabase | null> | undefined;

function open(): Promise<IDBDatabase | null> {
  opened ??= new Promise((done) => {
    try {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => {
        request.result.createObjectStore(STORE, { keyPath: "id" });
      };
      request.onsuccess = () => done(request.result);
      request.onerror = () => done(null);
    } catch {
      done(null);
    }
  });
  return opened;
}

async function run<T>(
  mode: IDBTransactionMode,
  act: (store: IDBObjectStore) => IDBRequest<T>,
): Promise<T | undefined> {
  const database = await open();
  if (!database) return undefined;
  return new Promise((done) => {
    const request = act(database.transaction(STORE, mode).objectStore(STORE));
    request.onsuccess = () => done(request.result);
    request.onerror = () => done(undefined);
  });
}

export async function readAll(): Promise<Conversation[]> {
  return (await run<Conversation[]>("readonly", (store) => store.getAll())) ?? [];
}

export async function write(conversation: Conversation): Promise<void> {
  // A copy without what is only of the page.
  const copy = JSON.parse(JSON.stringify(conversation)) as Conversation;
  await run("readwrite", (store) => store.put(copy));
}

export async function remove(id: string): Promise<void> {
  await run("readwrite", (store) => store.delete(id));
}
