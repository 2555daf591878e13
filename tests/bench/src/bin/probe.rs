//! The limit probe: the cheapest thing that passes as a channel server.
//!
//! Answers the WebSocket handshake, OPEN and CONNECT, and from then on writes each message from Redis as one prepared
//! frame to every socket, with one thread per core. No heartbeat, no token lookup, no recovery, nothing for a client
//! that reads slowly. What it costs is what the kernel takes; a server can only come near, or send several messages
//! in one write.

use std::{
    env,
    error::Error,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, mpsc},
    thread,
};

/// Threads that greet: a client that is slow to answer holds up one of them.
const GREETERS: usize = 4;

/// Stack of a thread; none of them goes deep.
const STACK: usize = 256 * 1024;

/// The room of one user begins with this; any other room is everyone.
const USER: &str = "user-";

/// A frame, and whom it is for: `None` for everyone.
type Prepared = (Option<u32>, Arc<[u8]>);

enum Work {
    Welcome(u32, TcpStream),
    Send(Prepared),
}

fn main() -> Result<(), Box<dyn Error>> {
    let port: u16 = env::var("PORT")?.parse()?;
    let redis = env::var("REDIS_URL")?;
    let listener = Arc::new(TcpListener::bind(("127.0.0.1", port))?);
    let cores = thread::available_parallelism()?.get();
    let mut writers = Vec::new();
    for _ in 0..cores {
        let (sender, receiver) = mpsc::channel();
        thread::Builder::new().stack_size(STACK).spawn(move || write(&receiver))?;
        writers.push(sender);
    }
    let next = Arc::new(Mutex::new(0_usize));
    for _ in 0..GREETERS {
        let (listener, writers, next) = (Arc::clone(&listener), writers.clone(), Arc::clone(&next));
        thread::Builder::new().stack_size(STACK).spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok((user, stream)) = greet(stream) else { continue };
                let mut next = next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                *next += 1;
                let _ = writers[*next % cores].send(Work::Welcome(user, stream));
            }
        })?;
    }
    let address = redis.trim_start_matches("redis://").split('/').next().unwrap_or_default();
    let mut redis = TcpStream::connect(address)?;
    redis.write_all(b"*2\r\n$9\r\nSUBSCRIBE\r\n$8\r\n/records\r\n")?;
    println!("listening on {port}");
    let mut redis = BufReader::with_capacity(64 * 1024, redis);
    loop {
        let prepared = prepare(&message(&mut redis)?);
        for writer in &writers {
            writer.send(Work::Send(prepared.clone()))?;
        }
    }
}

/// Takes a client up to CONNECT; returns its user's number, read from the token.
fn greet(mut stream: TcpStream) -> io::Result<(u32, TcpStream)> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 1024];
    let mut length = 0;
    while !buffer[..length].ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer[length..])? {
            0 => return Err(ErrorKind::InvalidData.into()),
            read => length += read,
        }
    }
    let request = String::from_utf8_lossy(&buffer[..length]);
    let digits = request.split("channel_token=token-").nth(1).unwrap_or_default();
    let user = digits.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or_default();
    // The key that the load generator sends is always the same, and so is the answer to it.
    stream.write_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    )?;
    stream.write_all(&frame(
        br#"0{"sid":"p","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}"#,
    ))?;
    // `40`, in a masked frame: two bytes of header, four of mask, two of text.
    stream.read_exact(&mut buffer[..8])?;
    stream.write_all(&frame(br#"40{"sid":"p"}"#))?;
    Ok((user, stream))
}

/// Writes to its share of the sockets, kept by user.
fn write(work: &mpsc::Receiver<Work>) {
    let mut sockets: Vec<Option<TcpStream>> = Vec::new();
    for work in work {
        match work {
            Work::Welcome(user, stream) => {
                let user = user as usize;
                if sockets.len() <= user {
                    sockets.resize_with(user + 1, || None);
                }
                sockets[user] = Some(stream);
            }
            Work::Send((Some(user), frame)) => {
                if let Some(slot) = sockets.get_mut(user as usize) {
                    send(slot, &frame);
                }
            }
            Work::Send((None, frame)) => sockets.iter_mut().for_each(|slot| send(slot, &frame)),
        }
    }
}

/// Writes to a socket and gives it up when it is gone.
fn send(slot: &mut Option<TcpStream>, frame: &[u8]) {
    if slot.as_mut().is_some_and(|stream| stream.write_all(frame).is_err()) {
        *slot = None;
    }
}

/// Reads the next message's payload; the subscription's confirmation is none.
fn message(redis: &mut impl BufRead) -> io::Result<Vec<u8>> {
    loop {
        let mut parts = Vec::new();
        let mut line = String::new();
        redis.read_line(&mut line)?;
        let count: usize = line.trim_start_matches('*').trim().parse().map_err(io::Error::other)?;
        for _ in 0..count {
            line.clear();
            redis.read_line(&mut line)?;
            let Some(length) = line.strip_prefix('$') else { continue };
            let mut part = vec![0; length.trim().parse::<usize>().map_err(io::Error::other)? + 2];
            redis.read_exact(&mut part)?;
            part.truncate(part.len() - 2);
            parts.push(part);
        }
        if parts.len() == 3 {
            return Ok(parts.swap_remove(2));
        }
    }
}

fn prepare(payload: &[u8]) -> Prepared {
    let start = String::from_utf8_lossy(&payload[..payload.len().min(64)]).into_owned();
    let room = start.strip_prefix(r#"{"room":""#).and_then(|rest| rest.split('"').next()).unwrap_or_default();
    let user = room.strip_prefix(USER).and_then(|number| number.parse().ok());
    (user, frame(&[br#"42["records","#, payload, br#","0"]"#].concat()).into())
}

fn frame(text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x81];
    match text.len() {
        length @ 0..126 => frame.push(length as u8),
        length @ 126..0x1_0000 => {
            frame.push(126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(text);
    frame
}
