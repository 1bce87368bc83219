// C-ECHO and C-STORE with dcmjs-dimse: node dcmjs_store.js MODULES HOST PORT FILE...
// Prints one line of JSON for each response; exit code 0 when every one was a success.
'use strict';

const [modules, host, port, ...files] = process.argv.slice(2);
const dimse = require(require.resolve('dcmjs-dimse', { paths: [modules] }));
const { CEchoRequest, CStoreRequest } = dimse.requests;

dimse.log.setLevel('error');
const responses = [];
const client = new dimse.Client();
for (const [name, request] of [
  ['echo', new CEchoRequest()],
  ...files.map((file) => [file, new CStoreRequest(file)]),
]) {
  request.on('response', (response) => {
    responses.push(response.getStatus());
    console.log(JSON.stringify({ name, status: response.getStatus() }));
  });
  client.addRequest(request);
}
client.on('networkError', (error) => {
  console.log(JSON.stringify({ error: String(error) }));
  process.exitCode = 1;
});
client.on('closed', () => {
  if (responses.length !== files.length + 1 || responses.some((status) => status !== 0)) process.exitCode = 1;
});
dimse.Transcoding.initializeAsync().then(() => client.send(host, Number(port), 'DCMJS', 'SCP_SERVER'));
