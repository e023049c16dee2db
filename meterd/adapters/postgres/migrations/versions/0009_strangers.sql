-- A customer that is linked late: what had come for it before is found without reading the inbox.
CREATE INDEX stripe_events_strangers ON stripe_events (customer_id)
    WHERE outcome = 'unknown_customer';
