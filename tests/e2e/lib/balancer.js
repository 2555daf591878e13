// A TCP balancer in front of several nodes: each connection goes to the next node that says it is ready.
import { connect, createServer } from "node:net";
import { pipeline } from "node:stream";

/** Listens on a free port; `nodes` are servers as `startOurs` returns them. */
export async function startBalancer(nodes) {
  const open = new Set();
  let turn = 0;

  async function readyNode() {
    for (const _node of nodes) {
      const node = nodes[turn++ % nodes.length];
      const { status } = await fetch(`${node.url}/health/ready`).catch(() => ({}));
      if (status === 200) return node;
    }
  }

  const server = createServer({ pauseOnConnect: true }, async (client) => {
    client.on("error", () => {});
    open.add(client);
    client.on("close", () => open.delete(client));
    const node = await readyNode();
    if (!node) return client.destroy();
    const upstream = connect(node.port, "127.0.0.1");
    for (const [from, to] of [[client, upstream], [upstream, client]]) pipeline(from, to, () => {});
    client.resume();
  });
  await new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(0, "127.0.0.1", resolve);
  });
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    stop: () =>
      new Promise((resolve) => {
        server.close(resolve);
        for (const client of open) client.destroy();
      }),
  };
}
