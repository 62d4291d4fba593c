// Asks for the API key of the server.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { look } from "../api/connection";
import { isRemembered, key, keyDialog, setKey } from "../api/key";
import { loadModels } from "../api/models";
import { Check, Field } from "./fields";

export function KeyDialog() {
  const dialog = useRef<HTMLDialogElement>(null);
  const draft = useSignal(key.value);
  const remember = useSignal(isRemembered.value);
  const state = keyDialog.value;
  const isOpen = state !== "closed";
  useEffect(() => {
    const { current } = dialog;
    if (isOpen && !current?.open) {
      draft.value = key.value;
      current?.showModal();
    }
    if (!isOpen && current?.open) current.close();
  }, [isOpen]);
  const save = () => {
    setKey(draft.value, remember.value);
    keyDialog.value = "closed";
    void loadModels();
    void look();
  };
  return (
    <dialog
      ref={dialog}
      class="key-dialog"
      aria-labelledby="key-title"
      onClose={() => (keyDialog.value = "closed")}
    >
      <form
        onSubmit={(event) => {
          event.preventDefault();
          save();
        }}
      >
        <h2 id="key-title">API key</h2>
        {state === "refused" ? (
          <p class="error" role="alert">
            The server does not know this key.
          </p>
        ) : (
          <p class="hint">Servers that were started with --api-key answer nobody else.</p>
        )}
        <Field
          label="key"
          type="password"
          value={draft.value}
          onChange={(value) => (draft.value = value)}
        />
        <Check
          label="Remember it in this browser"
          checked={remember.value}
          onChange={(value) => (remember.value = value)}
        />
        <p class="hint">Otherwise it is forgotten with this tab.</p>
        <div class="dialog-actions">
          <button type="button" onClick={() => (keyDialog.value = "closed")}>
            Cancel
          </button>
          <button type="submit" class="primary">
            Use the key
          </button>
        </div>
      </form>
    </dialog>
  );
}
