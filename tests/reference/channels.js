// What the reference does with Redis, whatever engine is under socket.io: who a socket is, and what it is sent.

/** Connects both clients and passes on what Rails publishes to the sockets of `io`. */
export async function serveChannels(io, lookups, subscriber) {
  io.on("connection", async (socket) => {
    socket.join("notice");
    const answer = await lookups.get(`/current_users/${socket.handshake.query.channel_token}`);
    if (!answer) return;
    const user = JSON.parse(answer);
    socket.join([`user-${user.id}`, ...user.group_ids.map((id) => `group-${id}`)]);
  });

  await Promise.all([lookups.connect(), subscriber.connect()]);
  await subscriber.subscribe("/records", (text) => {
    const data = JSON.parse(text);
    io.to(data.room).emit("records", data);
  });
  await subscriber.subscribe("/system_notice", (text) => {
    io.emit("notice", JSON.parse(text));
  });
}
