from hypothesis import HealthCheck, settings

# How busy a machine is decides no test.
settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")
