// A Rails that knows one user, and keeps what it was asked.
import { createServer } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { freePort } from "./ports.js";

/**
 * `allow({ user_secret, document_name })` decides; `tls` holds key and certificate for https; with `redirect` it sends
 * everyone there.
 */
export async function startRails(allow, { tls, redirect } = {}) {
  const port = await freePort();
  const asked = [];
  let server;

  const handle = (request, response) => {
    let body = "";
    request.on("data", (data) => (body += data));
    request.on("end", () => {
      const question = { method: request.method, url: request.url, ...JSON.parse(body) };
      asked.push(question);
      if (redirect) response.writeHead(301, { location: redirect }).end();
      else response.writeHead(allow(question) ? 200 : 401).end();
    });
  };

  const up = () =>
    new Promise((resolve, reject) => {
      server = tls ? createTlsServer(tls, handle) : createServer(handle);
      server.once("error", reject);
      server.listen(port, "127.0.0.1", resolve);
    });
  const down = () =>
    new Promise((resolve) => {
      server.close(resolve);
      server.closeAllConnections();
    });

  await up();
  return { url: `${tls ? "https://localhost" : "http://127.0.0.1"}:${port}`, asked, up, down };
}
