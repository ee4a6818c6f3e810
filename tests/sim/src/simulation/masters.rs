//! When the masters of jobs are stepped.

use super::event::Event;
use super::{LONGEST_SLEEP_MS, Simulation};
use crate::network::ProcessId;

impl Simulation {
    /// Something was said to the masters of a coordinator's jobs, maybe.
    pub(super) fn wake_masters(&mut self, id: ProcessId) {
        let (now, delay) = (self.world.now_ms(), self.draw(0, 4));
        let Some(coordinator) = self.coordinators.get_mut(&id) else { return };
        // While they wait for the store, they do nothing else.
        let at = (now + delay).max(coordinator.busy_ms);
        if coordinator.next_ms > at {
            coordinator.next_ms = at;
            self.after(at - now, Event::StepMasters(id, at));
        }
    }

    pub(super) fn step_masters(&mut self, id: ProcessId, at: i64) {
        let hears = self.draw(1, 5);
        let Some(coordinator) = self.coordinators.get_mut(&id).filter(|coordinator| coordinator.next_ms == at) else {
            return;
        };
        let (due, heard_all) = coordinator.step(hears);
        let machine = coordinator.machine.clone();
        let (now, waited) = (self.world.now_ms(), machine.waited_ms());
        let latest = now + LONGEST_SLEEP_MS;
        let next = match (due, heard_all) {
            (_, false) => now + 1,
            (Some(due), true) => machine.true_ms(due).clamp(now + 1, latest),
            (None, true) => latest,
        };
        let next = next + waited;
        coordinator.next_ms = next;
        self.after(next - now, Event::StepMasters(id, next));
    }
}
