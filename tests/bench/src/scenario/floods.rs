//! Strangers flood the server in every way there is, beside 200 well-behaved clients.
//!
//! The clients are in one room and get 1 kB fifty times a second: often enough that a second has a p99 worth the name.
//! What they see is measured in slices of about a second that take turns, on one server from start to end, so that what
//! else the machine does hits all of them alike:
//!
//! * **alone**: of all these slices beside one flood the p99, and of these the median over the floods, so that what a
//!   flood leaves behind does not make it easy to stay near it;
//! * beside the same flood **at another server** of the same program, in a process of its own;
//! * beside the flood at **this server**.
//!
//! Of the last two the median of the turns counts: one bad moment of the machine decides nothing.
//!
//! The second is there because server, clients and strangers share the machine here, and a real stranger brings another
//! one. What the flood costs the machine, the second slice pays as well; what only the third pays is that the server lets
//! strangers hold up its clients. So the promise holds p99 beside the flood against the larger of the other two. A server
//! that spends much on strangers makes the second slice slow too, which is why the table shows all three.
//!
//! Each slice begins with its flood and so has its first onset in it. With it [`NEWCOMERS`] browsers come, as patient as
//! the official client, and the flood goes on until they are in, or until [`GIVE_UP`]. Clients that are cut come back as
//! the official client does and get what they missed; late is late, and counts in the latencies.
//!
//! The recovery log is full before anything is measured, so that memory does not grow by messages.

use std::{io, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{Bench, SMALL, milliseconds};
use crate::{
    load::{Fleet, Flood, Flooder, Habit, Latencies, Options, latencies},
    redis::{Rails, To},
    results::Figure,
    servers::{Kind, Server},
    stage::Stage,
};

/// Well-behaved clients: all in one room.
const CLIENTS: usize = 200;
const ROOM: usize = 0;
const PER_SECOND: u32 = 50;

/// Who is in a room that floods use, and nobody else.
const MEMBERS_FROM: usize = CLIENTS;
const MEMBERS_ROOM: usize = 1;

/// Browsers that come while a flood is under way, and when they count as kept out.
const NEWCOMERS: usize = 5;
const GIVE_UP: Duration = Duration::from_secs(8);

/// A server that takes this much has failed, and goes no further, for the machine's sake.
const MOST_MEMORY: u64 = 4 << 30;

/// After each flood, for the kernel to close what it held.
const PAUSE: Duration = Duration::from_millis(250);

/// A server that delivers nothing for this long, while something is due, has lost it.
const SILENCE: Duration = Duration::from_secs(8);

/// What fills the recovery log, at its default of 64 MiB.
const FILL: usize = 1_100;
const FILL_EACH: usize = 64_000;

/// Of these at a time, with a pause: what Redis keeps for a slow subscriber has a bound.
const FILL_AT_ONCE: usize = 25;
const FILL_PAUSE: Duration = Duration::from_millis(10);

/// Messages before anything counts.
const WARM_UP: usize = 25;

/// After the last flood: when memory is looked at first, when at last, and how far above that of before it may be.
const SOON: Duration = Duration::from_secs(10);
const AT_LAST: Duration = Duration::from_mins(1);
const BACK: u64 = 20_000_000;

/// What clients saw in a slice.
struct Slice {
    latencies: Latencies,
    cut: u64,
    lost: u64,
}

impl Slice {
    /// In milliseconds.
    fn p99(&self) -> f64 {
        milliseconds(&self.latencies, 99.0)
    }
}

/// What clients saw in all slices of one flood.
struct Seen {
    alone: Latencies,
    /// The p99 of each turn, in milliseconds.
    elsewhere: Vec<f64>,
    here: Vec<f64>,
}

impl Bench {
    pub(super) async fn floods(&mut self, kind: Kind) -> io::Result<()> {
        let mut rails = self.redis.connect().await?;
        let room = |user| if user < MEMBERS_FROM { ROOM } else { MEMBERS_ROOM };
        rails.sign_in(0..MEMBERS_FROM + Flooder::MEMBERS, |user| vec![room(user)]).await?;
        let options = |port| Options { habit: Habit::Insist, sample: 1, ..Options::new(port, CLIENTS) };
        let mut stage = Stage::open(kind, self, options).await?;
        let other = Server::start(kind, &self.programs, self.redis.port, 0, &mut rails).await?;
        stage.connect(CLIENTS).await?;
        fill(&mut rails, MEMBERS_ROOM).await?;
        stage.steady(To::Group(ROOM), SMALL, WARM_UP, PER_SECOND).await?;
        sleep(PAUSE).await;
        let before = stage.server.rss()?;
        self.results.note(kind, Figure::FloodsBefore, before as f64 / 1e6);

        let (mut alone, mut beside, mut peak) = (Vec::new(), Vec::new(), before);
        for flood in Flood::ALL {
            let seen = self.flood(&mut stage, &other, flood).await;
            let seen = seen.map_err(|error| io::Error::other(format!("{}: {error}", flood.label())))?;
            alone.push(milliseconds(&seen.alone, 99.0));
            beside.push((flood as usize, median(seen.elsewhere), median(seen.here)));
            peak = peak.max(stage.server.peak()?);
        }
        let (alone, results) = (median(alone), &mut self.results);
        for (index, elsewhere, here) in beside {
            results.note_at(kind, Figure::FloodAlone, index, alone);
            results.note_at(kind, Figure::FloodElsewhere, index, elsewhere);
            results.note_at(kind, Figure::FloodHere, index, here);
            results.note_at(kind, Figure::FloodRatio, index, here / alone.max(elsewhere));
        }
        results.note(kind, Figure::FloodsPeak, (peak - before) as f64 / 1e6);
        self.calm_down(&stage, before).await
    }

    /// Without the flood, beside it at the other server, and beside it at this one, in turn.
    async fn flood(&mut self, stage: &mut Stage, other: &Server, flood: Flood) -> io::Result<Seen> {
        let (kind, scale, redis, index) =
            (stage.server.kind, self.scale.floods.clone(), self.redis.port, flood as usize);
        let start = async |port: u16| Flooder::start(flood, port, redis, MEMBERS_FROM, MEMBERS_ROOM).await;
        let mut seen = Seen { alone: latencies(), elsewhere: Vec::new(), here: Vec::new() };
        let (mut rates, mut cut, mut lost, mut slowest) = (Vec::new(), 0, 0, Duration::ZERO);
        let resident = stage.server.rss()?;
        stage.server.forget_peak()?;
        for _ in 0..scale.turns {
            // Both have the same bounds.
            let _ = seen.alone.add(slice(stage, other, scale.alone).await?.latencies);

            let flooder = start(other.port).await?;
            seen.elsewhere.push(slice(stage, other, scale.beside).await?.p99());
            flooder.finish().await?;
            sleep(PAUSE).await;

            let flooder = start(stage.server.port).await?;
            let newcomers = newcomers(stage.server.port);
            let (here, newcomers) = tokio::join!(slice(stage, other, scale.beside), newcomers);
            let (here, rate) = (here?, flooder.finish().await?);
            sleep(PAUSE).await;

            seen.here.push(here.p99());
            rates.push(rate);
            cut += here.cut;
            lost += here.lost;
            slowest = slowest.max(newcomers);
        }
        let peak = stage.server.peak()?.saturating_sub(resident);
        let results = &mut self.results;
        results.note_at(kind, Figure::FloodRate, index, median(rates));
        results.note_at(kind, Figure::FloodCut, index, cut as f64);
        results.note_at(kind, Figure::FloodLost, index, lost as f64);
        results.note_at(kind, Figure::FloodNewcomers, index, slowest.as_secs_f64());
        results.note_at(kind, Figure::FloodPeak, index, peak as f64 / 1e6);
        Ok(seen)
    }

    /// Waits until memory is what it was before, or should be.
    async fn calm_down(&mut self, stage: &Stage, before: u64) -> io::Result<()> {
        let kind = stage.server.kind;
        let started = Instant::now();
        sleep(SOON).await;
        let above = || Ok::<_, io::Error>(stage.server.rss()?.saturating_sub(before));
        self.results.note(kind, Figure::FloodsSoon, above()? as f64 / 1e6);
        while above()? > BACK && started.elapsed() < AT_LAST {
            sleep(Duration::from_millis(250)).await;
        }
        self.results.note(kind, Figure::FloodsLeft, above()? as f64 / 1e6);
        Ok(())
    }
}

/// The upper one of the two in the middle, if there are two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Messages to a room in which nobody is, until the recovery log is full.
pub(super) async fn fill(rails: &mut Rails, group: usize) -> io::Result<()> {
    for _ in 0..FILL / FILL_AT_ONCE {
        for _ in 0..FILL_AT_ONCE {
            rails.send(To::Group(group), FILL_EACH).await?;
        }
        rails.settle(FILL_AT_ONCE).await?;
        sleep(FILL_PAUSE).await;
    }
    Ok(())
}

/// Publishes to the clients for as long as `lasts`, and waits for what is due.
///
/// # Errors
/// When either server has died, or takes more than [`MOST_MEMORY`].
async fn slice(stage: &mut Stage, other: &Server, lasts: Duration) -> io::Result<Slice> {
    let messages = (lasts.as_secs_f64() * f64::from(PER_SECOND)) as u32;
    let due = CLIENTS as u64 * u64::from(messages);
    let closed = stage.fleet.tally().closed.load(Relaxed);
    stage.fleet.tally().reset();
    let start = Instant::now();
    for message in 0..messages {
        sleep_until(start + Duration::from_secs(1) / PER_SECOND * message).await;
        stage.rails.publish(To::Group(ROOM), SMALL).await?;
        if stage.server.rss()?.max(other.rss()?) > MOST_MEMORY {
            return Err(io::Error::other(format!("a server took more than {} GB", MOST_MEMORY >> 30)));
        }
    }
    let tally = stage.fleet.tally();
    let (mut seen, mut since) = (tally.delivered(), Instant::now());
    while seen < due && since.elapsed() < SILENCE {
        sleep(Duration::from_millis(5)).await;
        let now = tally.delivered();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    let cut = tally.closed.load(Relaxed) - closed;
    Ok(Slice { latencies: tally.latency(), cut, lost: due.saturating_sub(seen) })
}

/// How long it takes until all newcomers are in; they leave then.
async fn newcomers(port: u16) -> Duration {
    let started = Instant::now();
    let mut fleet = Fleet::new(Options { habit: Habit::Insist, ..Options::new(port, NEWCOMERS) });
    fleet.set_out(NEWCOMERS);
    while fleet.tally().connected() < NEWCOMERS && started.elapsed() < GIVE_UP {
        sleep(Duration::from_millis(2)).await;
    }
    started.elapsed()
}
