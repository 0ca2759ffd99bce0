from hypothesis import HealthCheck, settings

# How busy a machine is decides no test.
too_slow = [HealthCheck.too_slow]
settings.register_profile("any_machine", deadline=None, suppress_health_check=too_slow)
settings.load_profile("any_machine")
