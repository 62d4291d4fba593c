// The models that the server has. `NAME:STRATEGY` are presets of a search, which the page sets by
// itself; what it offers are models and adapters.
import { computed, signal } from "@preact/signals";
import { getJson, told } from "./client";
import type { Model } from "./types";

export const allModels = signal<Model[]>([]);
export const modelsError = signal("");
/** The name that the user chose; empty means the first. */
export const chosenModel = signal("");

export const models = computed(() => {
  const names = new Set(allModels.value.map((model) => model.id));
  return allModels.value.filter((model) => {
    const at = model.id.lastIndexOf(":");
    return at < 0 || !names.has(model.id.slice(0, at));
  });
});

/** The strategies that the server lists as presets of its first model. */
export const strategies = computed(() => {
  const first = models.value[0];
  if (!first) return [];
  const prefix = `${first.id}:`;
  const presets = allModels.value.filter((model) => model.id.startsWith(prefix));
  return presets.map((model) => model.id.slice(prefix.length));
});

export const model = computed(() => {
  const chosen = models.value.find((it) => it.id === chosenModel.value);
  return chosen ?? models.value[0];
});

export const adapters = computed(() => models.value.filter((it) => it.parent !== null));

export async function loadModels(): Promise<void> {
  try {
    const list = await getJson<{ data: Model[] }>("/v1/models");
    allModels.value = list.data;
    modelsError.value = "";
  } catch (error) {
    modelsError.value = told(error);
  }
}
