//! The link: frames in order, lost with the stream.

use super::World;

impl World {
    pub(super) fn cut_or_join(&mut self) {
        if self.link {
            self.counts.link_losses += 1;
            self.lose_link();
        } else {
            self.open_link();
        }
    }

    pub(super) fn lose_link(&mut self) {
        if self.link {
            self.link = false;
            // What is in flight is lost; what arrived before the cut may still be read by either side.
            while self.chance(1, 2) && !self.to_provider.is_empty() {
                self.deliver_to_provider();
            }
            self.to_provider.clear();
            self.to_consumer.clear();
            self.reads.clear();
            self.consumer.disconnected();
            self.provider.disconnected();
        }
    }

    pub(super) fn open_link(&mut self) {
        if !self.link {
            self.tell(format_args!("link up"));
            self.link = true;
            self.provider.connected();
            self.consumer.connected();
        }
    }

    pub(super) fn deliver_frame(&mut self) {
        if self.chance(1, 2) {
            self.deliver_to_provider();
        } else {
            self.deliver_to_consumer();
        }
    }

    pub(super) fn deliver_to_consumer(&mut self) {
        if let Some(frame) = self.to_consumer.pop_front() {
            self.tell(format_args!("frame to consumer {frame:?}"));
            self.consumer.received(frame);
        }
    }

    pub(super) fn deliver_to_provider(&mut self) {
        if let Some(frame) = self.to_provider.pop_front() {
            self.tell(format_args!("frame to provider {frame:?}"));
            self.provider.received(frame);
        }
    }
}
