// Prints the Stripe-Signature header for the payload on standard input: node sign.js SECRET TIME
const fs = require("node:fs");
const stripe = require("stripe")("sk_test_x");

const [secret, timestamp] = process.argv.slice(2);
const payload = fs.readFileSync(0, "utf8");
process.stdout.write(
  stripe.webhooks.generateTestHeaderString({ payload, secret, timestamp: Number(timestamp) }),
);
