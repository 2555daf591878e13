//! How much of everything: the full run fits twenty minutes on two cores, the quick one three.

use std::time::Duration;

/// Open files that a process needs besides its connections.
const SPARE_FILES: usize = 600;

/// Open files for each client of a deploy: its own, and two of the balancer.
const FILES_PER_CLIENT: usize = 3;

/// Sizes of all scenarios.
#[derive(Clone, Debug)]
pub(crate) struct Scale {
    pub(crate) rounds: usize,
    /// How long a step takes, in times that of the full run.
    pub(crate) pace: f64,
    /// What comes after a start or a connect, garbage collections among it, has come by then.
    pub(crate) settle: Duration,
    pub(crate) fanout: Fanout,
    /// Connections at which memory is taken; the last are those that the restart hits.
    pub(crate) crowd: Vec<usize>,
    /// Connections at which a delivery's cost is taken.
    pub(crate) growth: Vec<usize>,
    /// Deliveries at each of them.
    pub(crate) growth_deliveries: usize,
    pub(crate) rooms: Rooms,
    pub(crate) polling: Polling,
    pub(crate) jitter: Jitter,
    pub(crate) deploy: Deploy,
    pub(crate) floods: Floods,
    pub(crate) endurance: Endurance,
}

/// One room, then a room per user.
#[derive(Clone, Debug)]
pub(crate) struct Fanout {
    pub(crate) clients: usize,
    /// Messages at five a second of 1 kB and of 20 kB.
    pub(crate) steady: [usize; 2],
    /// Messages at once, likewise.
    pub(crate) burst: [usize; 2],
    /// Messages to single users.
    pub(crate) single: usize,
}

/// Users in many groups.
#[derive(Clone, Debug)]
pub(crate) struct Rooms {
    pub(crate) clients: usize,
    pub(crate) groups: Vec<usize>,
    pub(crate) deliveries: usize,
}

/// Half of the clients poll.
#[derive(Clone, Debug)]
pub(crate) struct Polling {
    pub(crate) clients: usize,
    pub(crate) messages: usize,
}

/// Clients on a bad network.
#[derive(Clone, Debug)]
pub(crate) struct Jitter {
    /// Clients of each server; all servers are measured at the same time.
    pub(crate) clients: usize,
    pub(crate) messages: usize,
}

/// Two nodes behind a balancer.
#[derive(Clone, Debug)]
pub(crate) struct Deploy {
    /// As many in each room.
    pub(crate) clients: usize,
    pub(crate) rooms: usize,
    /// Before the first node is replaced, between the two, and after the second.
    pub(crate) pause: Duration,
}

/// How often and how long clients are watched, for each flood.
#[derive(Clone, Debug)]
pub(crate) struct Floods {
    pub(crate) turns: usize,
    /// Without a flood; in all turns together about as long as one slice beside it, so that their p99s compare.
    pub(crate) alone: Duration,
    /// Beside the flood, at this server and at another.
    pub(crate) beside: Duration,
}

/// What runs only when it is named.
#[derive(Clone, Debug)]
pub(crate) struct Endurance {
    /// How long memory is watched while browsers come and go.
    pub(crate) churn: Duration,
    /// Clients of the node that dies.
    pub(crate) returning: usize,
    pub(crate) restarts: usize,
}

impl Scale {
    pub(crate) fn full() -> Self {
        Self {
            rounds: 4,
            pace: 1.0,
            settle: Duration::from_secs(1),
            fanout: Fanout { clients: 5_000, steady: [25, 10], burst: [60, 15], single: 25_000 },
            crowd: vec![1_000, 5_000, 15_000],
            growth: vec![1_000, 2_000, 4_000, 8_000, 16_000],
            growth_deliveries: 128_000,
            rooms: Rooms { clients: 2_000, groups: vec![50, 100, 200, 400], deliveries: 60_000 },
            polling: Polling { clients: 2_000, messages: 25 },
            jitter: Jitter { clients: 1_000, messages: 120 },
            deploy: Deploy { clients: 2_000, rooms: 20, pause: Duration::from_secs(5) },
            floods: Floods { turns: 3, alone: Duration::from_millis(400), beside: Duration::from_millis(1_100) },
            endurance: Endurance { churn: Duration::from_hours(1), returning: 20_000, restarts: 100 },
        }
    }

    pub(crate) fn quick() -> Self {
        Self {
            rounds: 1,
            pace: 0.3,
            settle: Duration::from_millis(400),
            fanout: Fanout { clients: 2_000, steady: [8, 4], burst: [40, 10], single: 10_000 },
            crowd: vec![1_000, 4_000],
            growth: vec![1_000, 2_000, 4_000],
            growth_deliveries: 24_000,
            rooms: Rooms { clients: 500, groups: vec![50, 200], deliveries: 10_000 },
            polling: Polling { clients: 500, messages: 8 },
            jitter: Jitter { clients: 300, messages: 20 },
            deploy: Deploy { clients: 500, rooms: 10, pause: Duration::from_secs(2) },
            floods: Floods { turns: 1, alone: Duration::from_secs(1), beside: Duration::from_secs(1) },
            endurance: Endurance { churn: Duration::from_mins(2), returning: 2_000, restarts: 20 },
        }
    }

    /// Most connections that any process holds.
    pub(crate) fn most(&self, servers: usize) -> usize {
        let largest = |sizes: &[usize]| sizes.iter().copied().max().unwrap_or_default();
        let deploy = self.deploy.clients * FILES_PER_CLIENT;
        [self.fanout.clients, largest(&self.crowd), largest(&self.growth), self.jitter.clients * servers, deploy]
            .into_iter()
            .max()
            .unwrap_or_default()
            + SPARE_FILES
    }

    /// Lets what runs only when it is named take what `files` open files in one process allow.
    pub(crate) fn fit_endurance(&mut self, files: usize) {
        self.endurance.returning = self.endurance.returning.min(files.saturating_sub(SPARE_FILES).max(100));
    }

    /// Leaves out what needs more than `files` open files in one process.
    pub(crate) fn fit(&mut self, files: usize) {
        let most = files.saturating_sub(SPARE_FILES).max(100);
        self.fanout.clients = self.fanout.clients.min(most);
        self.rooms.clients = self.rooms.clients.min(most);
        self.polling.clients = self.polling.clients.min(most);
        self.jitter.clients = self.jitter.clients.min(most / 5);
        let members = self.deploy.clients.min(most / FILES_PER_CLIENT) / self.deploy.rooms;
        self.deploy.clients = members * self.deploy.rooms;
        for sizes in [&mut self.crowd, &mut self.growth] {
            sizes.retain(|&size| size <= most);
            if sizes.is_empty() {
                sizes.push(most);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_leaves_out_what_does_not_fit() {
        let mut scale = Scale::full();
        scale.fit(10_000);
        assert_eq!(scale.crowd, [1_000, 5_000]);
        assert_eq!(scale.growth, [1_000, 2_000, 4_000, 8_000]);
        assert!(scale.most(4) <= 10_000);
        scale.fit(1_024);
        assert_eq!((scale.crowd.as_slice(), scale.fanout.clients), (&[424][..], 424));
    }
}
