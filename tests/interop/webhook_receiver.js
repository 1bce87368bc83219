// An HTTP server of Node's own that takes webhooks: one line of JSON for each, once its signature holds.
// node webhook_receiver.js PORT SECRET. The check is that of the Standard Webhooks specification.
const { createHmac, timingSafeEqual } = require("node:crypto");
const { createServer } = require("node:http");

const [port, secret] = process.argv.slice(2);

createServer((request, response) => {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    const body = Buffer.concat(pieces).toString("utf-8");
    const id = request.headers["webhook-id"];
    const signed = `${id}.${request.headers["webhook-timestamp"]}.${body}`;
    const expected = Buffer.from("v1," + createHmac("sha256", secret).update(signed).digest("base64"));
    const sent = Buffer.from(request.headers["webhook-signature"] ?? "");
    const holds = expected.length === sent.length && timingSafeEqual(expected, sent);
    response.writeHead(holds ? 204 : 401).end();
    if (holds) console.log(JSON.stringify({ id, event: JSON.parse(body) }));
  });
}).listen(Number(port), "127.0.0.1", () => console.log("{}"));
