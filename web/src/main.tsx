// Starts the page.
import { render } from "preact";
import { startHeartbeat } from "./api/connection";
import { App } from "./app";
import { load } from "./chat/store";
import { startRouter } from "./router";
import { startTheme } from "./theme";
import "./styles/index.css";

startTheme();
startRouter();
startHeartbeat();
void load();
render(<App />, document.getElementById("app")!);
