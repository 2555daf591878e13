//! What becomes dearer when there is more of it: connections, and rooms of each user.

use std::io;

use super::{Bench, SMALL};
use crate::{load::Options, redis::To, results::Figure, servers::Kind, stage::Stage};

const WARM_UP: usize = 5;

/// Groups for each user's groups to be taken from, in multiples of how many each has: so many members has a group of
/// `GROUPS` times the users.
const GROUPS: usize = 10;

impl Bench {
    /// One room, one message after the other, ever more members; the same number of deliveries each time.
    pub(super) async fn growth(&mut self, kind: Kind) -> io::Result<()> {
        let (sizes, deliveries) = (self.scale.growth.clone(), self.scale.growth_deliveries);
        let most = sizes.last().copied().unwrap_or_default();
        self.redis.connect().await?.sign_in(0..most, |_| vec![0]).await?;
        let mut stage = Stage::open(kind, self, |port| Options::new(port, most)).await?;
        for size in sizes {
            stage.connect(size).await?;
            let room = |_| To::Group(0);
            stage.lockstep(room, size as u64, SMALL, WARM_UP).await?;
            let cost = stage.lockstep(room, size as u64, SMALL, deliveries / size).await?;
            self.results.note_at(kind, Figure::Growth, size, cost.each());
        }
        Ok(())
    }

    /// The same users in ever more groups of the same size, on a new server each time.
    pub(super) async fn rooms(&mut self, kind: Kind) -> io::Result<()> {
        let scale = self.scale.rooms.clone();
        for groups in scale.groups {
            let all = groups * GROUPS;
            let mut rails = self.redis.connect().await?;
            rails
                .sign_in(0..scale.clients, |user| (0..groups).map(|index| user % GROUPS + index * GROUPS).collect())
                .await?;
            let options = |port| Options::new(port, scale.clients);
            let mut stage = Stage::open(kind, self, options).await?;
            let spent = stage.connect(scale.clients).await?;
            self.results.note_at(kind, Figure::RoomsConnect, groups, spent.as_secs_f64() * 1e6 / scale.clients as f64);
            self.results.note_at(kind, Figure::RoomsMemory, groups, stage.memory_per_client()? / 1e3);
            let members = scale.clients / GROUPS;
            // A prime, so that groups come in no order.
            let room = |message: usize| To::Group(message * 7_919 % all);
            stage.lockstep(room, members as u64, SMALL, WARM_UP).await?;
            let cost = stage.lockstep(room, members as u64, SMALL, scale.deliveries / members).await?;
            self.results.note_at(kind, Figure::RoomsDelivery, groups, cost.each());
        }
        Ok(())
    }
}
