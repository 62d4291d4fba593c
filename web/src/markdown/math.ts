// Formulas as readable text. A typesetter of TeX is larger than the rest of the page; models mostly
// write sums, fractions and a box around the answer, and those read well in a line.
import type { TokenizerAndRendererExtension, Tokens } from "marked";

const SYMBOLS: Record<string, string> = {
  approx: "≈",
  alpha: "α",
  beta: "β",
  cdot: "·",
  cdots: "⋯",
  cup: "∪",
  cap: "∩",
  Delta: "Δ",
  div: "÷",
  dots: "…",
  equiv: "≡",
  geq: "≥",
  ge: "≥",
  implies: "⇒",
  in: "∈",
  infty: "∞",
  int: "∫",
  lambda: "λ",
  ldots: "…",
  leq: "≤",
  le: "≤",
  mu: "μ",
  neq: "≠",
  ne: "≠",
  pi: "π",
  pm: "±",
  quad: "  ",
  Rightarrow: "⇒",
  rightarrow: "→",
  sigma: "σ",
  sqrt: "√",
  sum: "∑",
  theta: "θ",
  times: "×",
  to: "→",
};

/** TeX in a line of text; what is not known stays as it was written. */
export function plainMath(tex: string): string {
  let text = tex;
  // From the inside out, since braces nest.
  for (let round = 0; round < 4; round += 1) {
    text = text
      .replace(/\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}/g, (_, a: string, b: string) => over(a, b))
      .replace(/\\(?:text|textbf|mathrm|mathbf|operatorname)\{([^{}]*)\}/g, "$1")
      .replace(/\\boxed\{([^{}]*)\}/g, "[$1]")
      .replace(/\\sqrt\{([^{}]*)\}/g, "√($1)");
  }
  return text
    .replace(/\\(?:left|right|displaystyle)\b/g, "")
    .replace(/\\([a-zA-Z]+)/g, (whole, name: string) => SYMBOLS[name] ?? whole)
    .replace(/\\[,;:! ]/g, " ")
    .replace(/\\([{}%$&#_])/g, "$1")
    .replace(/\\\\/g, " ")
    .trim();
}

function over(a: string, b: string): string {
  const grouped = (it: string) => (/^[\w.]+$/.test(it) ? it : `(${it})`);
  return `${grouped(a)}/${grouped(b)}`;
}

const INLINE = /^\\\(([\s\S]+?)\\\)|^\\\[([\s\S]+?)\\\]|^\$\$([\s\S]+?)\$\$/;

/** `\(…\)`, `\[…\]` and `$$…$$`. A single `$` is money as often as it is a formula. */
export const math: TokenizerAndRendererExtension = {
  name: "math",
  level: "inline",
  start: (text: string) => /\\\(|\\\[|\$\$/.exec(text)?.index,
  tokenizer(text: string): Tokens.Generic | undefined {
    const match = INLINE.exec(text);
    if (!match) return undefined;
    const tex = match[1] ?? match[2] ?? match[3] ?? "";
    return { type: "math", raw: match[0], text: plainMath(tex) };
  },
};
