//! The hand-over under every loss, repetition and crash that a seed can think of: never two runners, and one again
//! once the link is back.

#![allow(clippy::unwrap_used)]

use dwcp_control::names::Name;
use dwcp_control::ownership::{Outcome, Ownership};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Message {
    Offer { epoch: u64, migration: String },
    Commit { epoch: u64, migration: String },
    Ask { epoch: u64 },
    Answer { epoch: u64, outcome: Outcome },
}

/// Two hosts, a network that loses, repeats and reorders, and what each host durably holds.
struct World {
    held: [Option<Ownership>; 2],
    network: Vec<(usize, Message)>,
    migrations: u32,
}

impl World {
    fn new() -> Self {
        Self {
            held: [Some(Ownership::Owned { epoch: 1 }), None],
            network: Vec::new(),
            migrations: 0,
        }
    }

    fn name(host: usize) -> Name {
        Name::new(["left", "right"][host]).unwrap()
    }

    fn runners(&self) -> usize {
        self.held
            .iter()
            .flatten()
            .filter(|o| o.run_permit().is_some())
            .count()
    }

    fn send(&mut self, to: usize, message: Message) {
        if self.network.len() < 32 {
            self.network.push((to, message));
        }
    }

    /// A source offers, and commits at once or later; a crash between the two is simply never committing.
    fn offer(&mut self, from: usize) {
        if let Some(epoch) = self.held[from].as_ref().and_then(Ownership::run_permit) {
            self.migrations += 1;
            let migration = format!("m{}", self.migrations);
            let message = Message::Offer { epoch, migration };
            self.send(1 - from, message);
        }
    }

    fn commit(&mut self, from: usize, withdraw: bool) {
        // Only for the migration that the destination expects now: the source has its acceptance.
        let Some(Ownership::Expecting {
            next, migration, ..
        }) = self.held[1 - from].clone()
        else {
            return;
        };
        let Some(held) = &self.held[from] else { return };
        if held.run_permit().is_none_or(|epoch| epoch >= next) {
            return;
        }
        let given = held
            .give(next, Self::name(1 - from), migration.clone())
            .unwrap();
        if withdraw {
            self.held[from] = Some(given.withdraw().unwrap());
            return;
        }
        self.held[from] = Some(given);
        let message = Message::Commit {
            epoch: next,
            migration,
        };
        self.send(1 - from, message);
    }

    fn ask(&mut self, from: usize) {
        if let Some(Ownership::Given { next, .. }) = &self.held[from] {
            let epoch = *next;
            self.send(1 - from, Message::Ask { epoch });
        }
    }

    fn deliver(&mut self, at: usize, lose: bool, repeat: bool) {
        if self.network.is_empty() {
            return;
        }
        let at = at % self.network.len();
        let (to, message) = if repeat {
            self.network[at].clone()
        } else {
            self.network.remove(at)
        };
        if lose {
            return;
        }
        let held = self.held[to].as_ref();
        match message {
            Message::Offer { epoch, migration } => {
                let next = Ownership::next_epoch(held, epoch).unwrap();
                if let Ok(next) = Ownership::expect(held, next, Self::name(1 - to), migration) {
                    self.held[to] = Some(next);
                }
            }
            Message::Commit { epoch, migration } => {
                if let Some(Ok(next)) = held.map(|o| o.take(epoch, &migration)) {
                    self.held[to] = Some(next);
                    self.send(
                        1 - to,
                        Message::Answer {
                            epoch,
                            outcome: Outcome::Took,
                        },
                    );
                }
            }
            Message::Ask { epoch } => {
                let mut outcome = Ownership::outcome(held, epoch);
                if outcome == Outcome::Undecided
                    && let Ok(next) = Ownership::refuse(held, epoch)
                {
                    self.held[to] = Some(next);
                    outcome = Outcome::Refused;
                }
                self.send(1 - to, Message::Answer { epoch, outcome });
            }
            Message::Answer { epoch, outcome } => {
                if let Some(Ok(next)) = held.map(|o| o.answered(epoch, outcome)) {
                    self.held[to] = Some(next);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]
    #[test]
    fn never_two_and_one_again(steps in proptest::collection::vec((0u8..7, 0usize..32, 0usize..2), 1..400)) {
        let mut world = World::new();
        for (what, at, host) in steps {
            let before: Vec<u64> = world.held.iter().map(|o| o.as_ref().map_or(0, Ownership::epoch)).collect();
            match what {
                0 => world.offer(host),
                1 => world.commit(host, at == 0),
                2 => world.ask(host),
                3 => world.deliver(at, true, false),
                4 => world.deliver(at, false, true),
                _ => world.deliver(at, false, false),
            }
            prop_assert!(world.runners() <= 1, "two runners: {:?}", world.held);
            for (host, before) in before.iter().enumerate() {
                let now = world.held[host].as_ref().map_or(0, Ownership::epoch);
                prop_assert!(now >= *before, "an epoch shrank: {:?}", world.held);
            }
        }
        // The link is back: whoever is in doubt asks until it knows.
        for _ in 0..8 {
            world.network.clear();
            for host in 0..2 {
                world.ask(host);
            }
            while !world.network.is_empty() {
                world.deliver(0, false, false);
            }
        }
        prop_assert_eq!(world.runners(), 1, "no runner: {:?}", world.held);
    }
}

/// `DWCP_SOAK_CASES` raises the number of cases.
fn cases() -> u32 {
    std::env::var("DWCP_SOAK_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2_000)
}
