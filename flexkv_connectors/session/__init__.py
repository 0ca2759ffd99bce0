"""For engines that give us their KV pages: we own the host tier and every tier below it.

An adapter has a `SchedulerSession` where its engine schedules and a `WorkerSession` on every rank,
and calls them in this order. What is in parentheses is for engines that have such a thing.

On the scheduler, for a request:
    add its `RequestState` to `states`, (`fetch` while it may wait for SSD), `offer`, set its
    `page_ids`, `plan_load`; with each step that computes it, `plan_save`; `end`.
On the scheduler, for a step:
    `begin_orders`, plans, `take_ssd_orders`; what these return goes to every rank. Then, with what
    comes back: (`drop_failed_pages` first), `handle_reports`. (`reset`, when weights may change.)
On a rank:
    `open` once, `attach` where another rank owns the pool; for a step: `move` and `load` before the
    forward pass, in either order, `submit` the saves after it; then `collect` and `take_report`.
"""
