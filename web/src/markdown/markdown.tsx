// A text of a model.
import { useLayoutEffect, useRef } from "preact/hooks";
import { copyText } from "../ui/copy";
import { render } from "./render";

export function Markdown({ text }: { text: string }) {
  const box = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const fragment = render(text);
    for (const block of fragment.querySelectorAll("pre")) addHead(block);
    for (const table of fragment.querySelectorAll("table")) scrolled(table);
    box.current!.replaceChildren(fragment);
  }, [text]);
  return <div class="markdown" ref={box} />;
}

/** The bar above a block of code: its language, and a button that copies it. */
function addHead(block: HTMLPreElement): void {
  const head = document.createElement("div");
  head.className = "code-head";
  const name = document.createElement("span");
  const kind = block.querySelector("code")?.className.replace("language-", "");
  name.textContent = kind || "text";
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Copy";
  button.addEventListener("click", () => {
    void copyText(block.textContent ?? "").then((isCopied) => {
      button.textContent = isCopied ? "Copied" : "Not copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  });
  head.append(name, button);
  // Keyboards scroll what can have the focus.
  block.tabIndex = 0;
  const frame = document.createElement("div");
  frame.className = "code-block";
  block.replaceWith(frame);
  frame.append(head, block);
}

function scrolled(table: HTMLTableElement): void {
  const frame = document.createElement("div");
  frame.className = "table-scroll";
  frame.tabIndex = 0;
  table.replaceWith(frame);
  frame.append(table);
}
