// C-GET or C-MOVE of a study with dcmjs-dimse, which is the destination itself:
// node dcmjs_retrieve.js MODULES HOST PORT STUDY KINDS [DESTINATION_PORT]
// KINDS is JSON: [[SOP class, transfer syntax], ...]; with a port to listen on it is a C-MOVE to DCMJS.
// Prints a line of JSON for each object, {"received": UID, "sopClass": UID}, and for the final response.
'use strict';

const [modules, host, port, study, kinds, destinationPort] = process.argv.slice(2);
const dimse = require(require.resolve('dcmjs-dimse', { paths: [modules] }));
const { Association, PresentationContext } = dimse.association;
const { CGetRequest, CMoveRequest } = dimse.requests;
const { CStoreResponse } = dimse.responses;
const { PresentationContextResult, Status } = dimse.constants;

dimse.log.setLevel('error');

function take(request, callback) {
  const elements = request.getDataset().getElements();
  console.log(JSON.stringify({ received: elements.SOPInstanceUID, sopClass: elements.SOPClassUID }));
  const response = CStoreResponse.fromRequest(request);
  response.setStatus(Status.Success);
  callback(response);
}

class Destination extends dimse.Scp {
  associationRequested(association) {
    association.getPresentationContexts().forEach(({ id }) => {
      const context = association.getPresentationContext(id);
      context.setResult(PresentationContextResult.Accept, context.getTransferSyntaxUids()[0]);
    });
    this.sendAssociationAccept();
  }

  associationReleaseRequested() {
    this.sendAssociationReleaseResponse();
  }

  cStoreRequest(request, callback) {
    take(request, callback);
  }
}

let server;
const client = new dimse.Client();
const request = destinationPort
  ? CMoveRequest.createStudyMoveRequest('DCMJS', study)
  : CGetRequest.createStudyGetRequest(study);
request.on('response', (response) => {
  if (response.getStatus() === Status.Pending) return;
  console.log(
    JSON.stringify({
      status: response.getStatus(),
      completed: response.getCompleted(),
      failed: response.getFailures(),
      warning: response.getWarnings(),
    })
  );
});
client.on('cStoreRequest', take);
client.on('networkError', (error) => {
  console.log(JSON.stringify({ error: String(error) }));
  process.exitCode = 1;
});
client.on('closed', () => {
  if (server) server.close();
});

function send() {
  client.addRequest(request);
  client.send(host, Number(port), 'DCMJS', 'SCP_SERVER');
}

dimse.Transcoding.initializeAsync().then(() => {
  if (destinationPort) {
    server = new dimse.Server(Destination);
    server.on('listening', send);
    server.listen(Number(destinationPort));
    return;
  }
  request.setAddStorageSopClassesToAssociation(false);
  const wanted = JSON.parse(kinds);
  for (const [sopClass, syntax] of wanted) {
    client.addAdditionalPresentationContext(new PresentationContext(0, sopClass, syntax), true);
  }
  // The client asks for the SCP role of the classes that it knows only, each in one context.
  const sopClasses = new Set(wanted.map(([sopClass]) => sopClass));
  const add = Association.prototype.addPresentationContext;
  Association.prototype.addPresentationContext = function (sopClass, id) {
    const added = add.call(this, sopClass, id);
    if (sopClasses.has(sopClass)) this.getPresentationContext(added).setProviderRole(true);
    return added;
  };
  send();
});
