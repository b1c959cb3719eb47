"""What is kept: answers, conversations, and tables of the team's. Only projects with the option have this folder."""

from app.database.background import llm_for
from app.database.engine import Session
from app.database.tables import Base

__all__ = ["Base", "Session", "llm_for"]
