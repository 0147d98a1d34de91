// A service of a tenant by the NATS services API, until its standard input ends. Its login is the argument.
import services from "@nats-io/services"; // CommonJS, whose exports Node 20 does not find by name
import { connect } from "@nats-io/transport-node";

const connection = await connect(JSON.parse(process.argv[2]));
const service = await new services.Svcm(connection).add({ name: "orders", version: "1.0.0" });
service.addEndpoint("orders", {
  subject: "rpc.acme.orders.*",
  handler: (error, request) => {
    const user = request.headers?.get("Broker-User");
    if (!user) return;
    if (request.subject.endsWith(".refused")) request.respondError(409, "no");
    else request.respond(JSON.stringify({ user, got: request.json() }));
  },
});
await connection.flush();
console.log("ready");
process.stdin.on("end", () => connection.close()).resume();
