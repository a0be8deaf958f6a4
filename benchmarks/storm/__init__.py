"""The parts of ``fault_storm.py``: plans of kills, drivers of both sides, and what is checked afterwards."""
