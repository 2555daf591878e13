// What a Hocuspocus server in front of Loomio needs as its `onAuthenticate`; the README shows the same.

export const onAuthenticate = (channels) =>
  async function ({ token, documentName, requestHeaders, request }) {
    const forwarded = [requestHeaders["x-forwarded-for"], request.socket.remoteAddress].filter(Boolean).join(", ");
    for (let tries = 0; tries < 5; tries++) {
      const answer = await fetch(`${channels}/api/hocuspocus`, {
        method: "POST",
        headers: { "Content-type": "application/json; charset=UTF-8", "X-Forwarded-For": forwarded },
        body: JSON.stringify({ user_secret: token, document_name: documentName }),
      });
      if (answer.status === 200) return;
      if (answer.status !== 429 && answer.status !== 503) break;
      await new Promise((resolve) => setTimeout(resolve, 1000 * answer.headers.get("retry-after")));
    }
    throw new Error("permission denied");
  };
