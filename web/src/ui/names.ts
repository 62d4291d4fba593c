// Names of the API as people read them.

export function strategyName(strategy: string): string {
  return strategy === "none" ? "plain answer" : strategy.replaceAll("_", " ");
}
