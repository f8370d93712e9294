"""Search: strategies, schedules, replay, minimisation and explanation, over what
`stress.engines.program` can run."""
