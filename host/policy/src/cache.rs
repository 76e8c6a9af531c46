//! Outcomes kept by the hash of everything they depend on.
//!
//! Always: bounded; the oldest goes first. Never: an outcome that a fault took part in.

use crate::outcome::Outcome;
use std::collections::{HashMap, VecDeque};

/// SHA-256 of the set in force and the canonical question.
pub(crate) type Key = [u8; 32];

#[derive(Debug)]
pub(crate) struct Cache {
    outcomes: HashMap<Key, Outcome>,
    order: VecDeque<Key>,
    capacity: usize,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

impl Cache {
    pub(crate) fn new(capacity: usize) -> Cache {
        Cache {
            outcomes: HashMap::new(),
            order: VecDeque::new(),
            capacity,
            hits: 0,
            misses: 0,
        }
    }

    pub(crate) fn get(&mut self, key: &Key) -> Option<Outcome> {
        let found = self.outcomes.get(key).cloned();
        match found {
            Some(_) => self.hits += 1,
            None => self.misses += 1,
        }
        found
    }

    pub(crate) fn put(&mut self, key: Key, outcome: Outcome) {
        if self.capacity == 0 || outcome.has_fault() {
            return;
        }
        if self.outcomes.insert(key, outcome).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > self.capacity {
            if let Some(oldest) = self.order.pop_front() {
                self.outcomes.remove(&oldest);
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.outcomes.clear();
        self.order.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.outcomes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first() {
        let mut cache = Cache::new(2);
        for n in 0..3 {
            cache.put([n; 32], Outcome::default());
        }
        assert_eq!(cache.len(), 2);
        assert_eq!(cache.get(&[0; 32]), None);
        assert!(cache.get(&[2; 32]).is_some());
        assert_eq!((cache.hits, cache.misses), (1, 1));
        cache.clear();
        assert_eq!(cache.len(), 0);
    }
}
