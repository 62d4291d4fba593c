// Adapters: which are there, load and unload.
import { useSignal } from "@preact/signals";
import { ask, told } from "../api/client";
import { adapters, loadModels } from "../api/models";
import { Field } from "../ui/fields";

export function Adapters() {
  const name = useSignal("");
  const path = useSignal("");
  const message = useSignal("");
  const isBusy = useSignal(false);
  const change = async (route: string, body: unknown) => {
    isBusy.value = true;
    message.value = "";
    try {
      const response = await ask(route, { body });
      const text = await response.text();
      // The route answers with a JSON string or a plain text, as vLLM's does.
      message.value = text.replace(/^"|"$/g, "");
      await loadModels();
    } catch (error) {
      message.value = told(error);
    }
    isBusy.value = false;
  };
  return (
    <section class="card">
      <h2>Adapters</h2>
      {adapters.value.length === 0 ? (
        <p class="hint">No adapter is loaded.</p>
      ) : (
        <ul class="adapters">
          {adapters.value.map((adapter) => (
            <li key={adapter.id}>
              <span>
                <strong>{adapter.id}</strong> <small>of {adapter.parent}</small>
              </span>
              <button
                disabled={isBusy.value}
                onClick={() => void change("/v1/unload_lora_adapter", { lora_name: adapter.id })}
              >
                Unload
              </button>
            </li>
          ))}
        </ul>
      )}
      <form
        class="adapter-form"
        onSubmit={(event) => {
          event.preventDefault();
          const body = { lora_name: name.value.trim(), lora_path: path.value.trim() };
          void change("/v1/load_lora_adapter", body);
        }}
      >
        <Field label="name" value={name.value} onChange={(value) => (name.value = value)} />
        <Field
          label="folder on the server"
          title="Inside of a --lora-root"
          value={path.value}
          onChange={(value) => (path.value = value)}
        />
        <button
          type="submit"
          disabled={isBusy.value || name.value.trim() === "" || path.value.trim() === ""}
        >
          {isBusy.value ? "At work…" : "Load"}
        </button>
      </form>
      <p role="status" class="hint">
        {message.value}
      </p>
    </section>
  );
}
