import type { Server } from "node:http";

export const CSP: string;
export function serve(folder: string, port: number, server: URL): Promise<Server>;
